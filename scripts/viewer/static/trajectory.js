// One trajectory: what was said, and every token with its numbers.
"use strict";

const COLORS = { mask: "loss mask", engine: "engine log-prob", gap: "learner − engine", ratio: "ratio", advantage: "advantage" };
const view = { color: "mask", tokens: [], page: null };

async function trajectory(main, { run, thing, params }) {
  const line = Number(thing);
  const found = await ask(`/api/runs/${run}/trajectories/${line}`);
  const { row } = found;
  view.tokens = [];
  const turns = found.turns.map((turn, place) => turnBlock(found, turn, place));
  const inspector = el("aside", { id: "inspector", "aria-live": "polite", "aria-label": "Token" },
    el("h3", {}, "Token"), el("p", { class: "quiet" }, "Point at a token, or Tab to one and move with ← and →."));
  const color = el("select", { id: "color", onchange: (event) => { view.color = event.target.value; paint(); } },
    Object.entries(COLORS).map(([value, name]) => el("option", { value, selected: value === view.color }, name)));
  const legend = el("span", { id: "legend" });
  const neighbours = el("div", { class: "controls", id: "neighbours" });
  put(main,
    el("h2", {}, `Trajectory ${found.id} `, el("span", { class: "quiet" }, `line ${line} of ${nameOf(run)}`)), neighbours,
    header(run, found, row),
    el("div", { class: "columns" },
      el("section", { "aria-label": "Messages" }, el("h3", {}, "Messages"), found.messages.map(message), times(found)),
      el("section", { "aria-label": "Tokens" }, el("h3", {}, "Tokens"),
        el("div", { class: "controls" }, el("label", {}, "Colour by ", color), legend), turns),
      inspector));
  view.page = main.firstChild;
  paint();
  await Promise.all([beside(run, line, row, params, neighbours), advantages(run, line)]);
}

function header(run, { task, score, error }, row) {
  const parts = Object.entries(score.parts).map(([name, value]) => `${name} ${short(value)}`).join(", ");
  return el("div", {}, facts([["reward", rewardText(row)], ["parts", parts], ["success", short(row.success)],
    ["stop reason", row.stop_reason], ["step", `${row.step} (${row.split})`],
    ["group", el("a", { href: link("list", run, { step: row.step, split: row.split, group: row.group }) }, `${row.group}, member ${row.member}`)],
    ["environment", `${row.env}:${row.level ?? "–"}`], ["answer", task.answer],
    ["policy version", row.oldest === row.newest ? short(row.oldest) : `${row.oldest} to ${row.newest}`],
    ["turns", String(row.num_turns)], ["sampled tokens", String(row.num_tokens)]]),
  error ? el("p", { class: "problem" }, `The world failed: ${error.kind}: ${error.message}`) : null,
  score.explanation ? el("p", {}, `Explanation: ${score.explanation}`) : null,
  score.error ? el("p", { class: "problem" }, `Unscored${score.error_kind ? ` (${score.error_kind})` : ""}: ${score.error}`) : null);
}

function message(said) {
  const calls = said.tool_calls.map((call) => el("div", { class: call.status === "ok" ? "call" : "call bad" },
    el("div", {}, el("strong", {}, call.name || "(no tool)"), " ", el("span", { class: "badge" }, call.status),
      el("span", { class: "quiet call-time" }, call.seconds !== null ? ` ${seconds(call.seconds)}`
        : call.status === "ok" ? " no time recorded" : "")),
    el("pre", {}, call.text), call.problem ? el("p", { class: "problem" }, call.problem) : null));
  return el("article", { class: `message ${said.role}${said.is_error ? " bad" : ""}` },
    el("h4", {}, said.role, said.is_error ? el("span", { class: "badge bad" }, "error") : null),
    said.text ? el("pre", {}, said.text) : null, calls);
}

function times({ timings_s: timings, metrics, final_state: state, task }) {
  const spent = Object.entries(timings).map(([name, spent]) => [name, seconds(spent)]);
  return el("div", {}, el("h4", {}, "Where its time went"), facts(spent),
    el("details", {}, el("summary", {}, "Final state, metrics, task"),
      el("pre", {}, JSON.stringify({ final_state: state, metrics, task }, null, 2))));
}

function turnBlock(found, turn, place) {
  const versions = [...new Set(turn.sampled.versions.map((span) => span[0]))].join(", ");
  const from = turn.parent === null ? "fresh context" : turn.parent === place - 1 ? "" : `continues turn ${turn.parent}`;
  const told = [versions && `policy ${versions}`, `finished: ${turn.finish_reason}`, turn.reward ? `turn reward ${short(turn.reward)}` : "", from];
  return el("div", { class: "turn" }, el("h4", {}, `Turn ${place} `, el("span", { class: "quiet" }, told.filter(Boolean).join(" · "))),
    el("div", { class: "tokens" },
      turn.context.ids.map((id, at) => token({ kind: turn.parent === null ? "prompt" : "tool", id, text: turn.context.texts[at], turn: place, at })),
      turn.sampled.ids.map((id, at) => token(sampled(found, turn, place, at, id)))));
}

function sampled(found, { sampled: told }, place, at, id) {
  const span = told.versions.find(([, start, end]) => at >= start && at < end);
  const engine = told.engine[at], learner = told.learner ? told.learner[at] ?? null : null;
  const gap = isNumber(engine) && isNumber(learner) ? learner - engine : null;
  return { kind: found.is_trained ? "sampled" : "masked", id, text: told.texts[at], turn: place, at, engine, learner, gap,
    ratio: gap === null ? null : Math.exp(gap), advantage: null, version: span ? span[0] : null };
}

function token(facts) {
  const text = facts.text === null ? `${facts.id} ` : facts.text.replace(/\n/g, "↵\n");
  const node = el("span", { class: `token ${facts.kind}`, tabindex: view.tokens.length ? -1 : 0 }, text || "∅");
  const place = view.tokens.push({ ...facts, node }) - 1;
  node.addEventListener("pointerenter", () => inspect(place));
  node.addEventListener("focus", () => inspect(place));
  node.addEventListener("click", () => focusToken(place));
  node.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) { event.preventDefault(); focusToken(place + move); }
  });
  return node;
}

function focusToken(place) {
  const chosen = view.tokens[place];
  if (!chosen) return;
  for (const other of view.tokens) other.node.tabIndex = -1;
  chosen.node.tabIndex = 0;
  chosen.node.focus();
}

const KINDS = { prompt: "prompt: not trained on", tool: "tool and template: not trained on", sampled: "sampled: trained on",
  masked: "sampled: not trained on" };
const precise = (value) => (isNumber(value) ? value.toFixed(6).replace("-", "−") : value ?? "–");

function inspect(place) {
  const chosen = view.tokens[place];
  for (const other of document.querySelectorAll(".token.chosen")) other.classList.remove("chosen");
  chosen.node.classList.add("chosen");
  view.inspected = place;
  const isContext = chosen.engine === undefined;
  const row = (name, value, title) => el("div", { "data-field": name, title }, el("dt", {}, name), el("dd", {}, value));
  put(document.getElementById("inspector"), el("h3", {}, "Token"),
    el("pre", { class: "big" }, chosen.text === null ? String(chosen.id) : visible(chosen.text)),
    el("p", { class: `kind ${chosen.kind}` }, KINDS[chosen.kind]),
    el("dl", { class: "numbers" }, row("id", String(chosen.id)), row("turn", `${chosen.turn}, token ${chosen.at}`),
      isContext ? null : [row("engine log-prob", precise(chosen.engine), "nats"), row("probability", isNumber(chosen.engine) ? `${short(100 * Math.exp(chosen.engine))} %` : "–"),
        row("learner log-prob", precise(chosen.learner), "nats, before the update"), row("gap", short(chosen.gap), "learner − engine, nats"),
        row("ratio", precise(chosen.ratio), "exp(learner − engine)"), row("advantage", short(chosen.advantage), view.reason || view.source),
        row("policy version", short(chosen.version))]),
    isContext ? el("p", { class: "quiet" }, "Context has no log-probs: the policy did not sample it.") : null,
    isContext ? null : el("p", { class: "quiet", id: "ratio-note" }, "The ratio here is learner before the update over engine: how far rollout and "
      + "learner are apart (off-policy), not the π_new/π_old that the loss clips."),
    isContext || !view.reason ? null : el("p", { class: "quiet" }, `No advantage: ${view.reason}.`));
}
const visible = (text) => (text === "" ? "∅" : text.replace(/ /g, "␣").replace(/\n/g, "↵"));

// Loss mask: four kinds. Numbers: from the palest at 0 to the strongest at the largest size in the trajectory.
function paint() {
  const legend = document.getElementById("legend");
  const byMask = view.color === "mask";
  const values = view.tokens.map((each) => (byMask ? null : strength(each)));
  const largest = Math.max(...values.filter(isNumber).map(Math.abs), 0);
  view.tokens.forEach(({ node }, place) => {
    const value = values[place];
    node.classList.toggle("by-number", !byMask);
    node.classList.toggle("below", isNumber(value) && value < 0);
    node.style.setProperty("--share", isNumber(value) && largest > 0 ? Math.abs(value) / largest : 0);
  });
  const used = Object.keys(KINDS).filter((kind) => view.tokens.some((each) => each.kind === kind));
  legend.replaceChildren(...(byMask
    ? used.map((kind) => el("span", { class: `token ${kind}` }, KINDS[kind]))
    : [el("span", { class: "quiet" }, largest === 0 ? `No ${COLORS[view.color]} other than 0 is known here.`
      : `Blue: above 0, orange: below; strongest at ${short(largest)}${view.color === "ratio" ? " from 1" : ""}.`)]));
}
const strength = (each) => ({ engine: each.engine, gap: each.gap, ratio: isNumber(each.ratio) ? each.ratio - 1 : null,
  advantage: each.advantage })[view.color];

async function advantages(run, line) {
  const page = view.page;
  view.reason = "being read";
  const { turns, reason, source } = await ask(`/api/runs/${run}/advantages/${line}`);
  if (page !== view.page) return; // another trajectory was opened meanwhile
  view.reason = reason;
  view.source = source;
  for (const each of view.tokens) if (each.engine !== undefined) each.advantage = turns[each.turn]?.[each.at] ?? null;
  if (view.inspected !== undefined && view.tokens[view.inspected]?.node.classList.contains("chosen")) inspect(view.inspected);
  paint();
}

// The neighbours in the list that led here; a trajectory that was opened by its address is among its group.
async function beside(run, line, row, params, place) {
  const filters = Object.keys(params).length ? params : { step: row.step, split: row.split, group: row.group };
  const found = await around(run, filters, line, place);
  if (!found) return;
  const to = (other) => (other ? link("trajectory", run, filters, other.line) : null);
  const told = Object.entries(filters).map(([name, value]) => `${name} ${value}`).join(", ");
  place.replaceChildren(jump("← Previous (k)", to(found.previous), "prev"), jump("Next (j) →", to(found.next), "next"),
    el("a", { class: "button", href: link("list", run, filters), "data-jump": "up" }, "List (u)"),
    el("span", { class: "quiet" }, found.number === null ? `with ${told}` : `number ${found.number} with ${told}`));
}

// A search through text takes several requests, each of them short; null when another page was opened meanwhile.
async function around(run, filters, line, place) {
  const path = `/api/runs/${run}/rows`;
  let found = await ask(path, { ...filters, near: line });
  while (found.earlier !== null || found.later !== null) {
    if (!place.isConnected) return null;
    const more = await ask(path, { ...filters, near: line, earlier: found.earlier ?? 0, later: found.later ?? Number.MAX_SAFE_INTEGER });
    found = { ...more, previous: found.previous ?? more.previous, next: found.next ?? more.next };
  }
  return found;
}
