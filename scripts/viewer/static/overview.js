// The first page: what each run is, where its settings differ, its evaluations and its curves.
"use strict";

const MAIN = ["rollout/reward_mean", "rollout/success", "policy/loss", "preference/loss", "preference/margin",
  "policy/entropy", "policy/approx_kl_k3", "policy/kl_ref_k3", "policy/clip_frac_low", "optim/grad_norm",
  "gap/abs_max", "rollout/response_tokens", "rollout/turns", "rollout/tool_error_frac", "time/total_s"];
const opened = new Set();
const wanted = { metric: "" };

async function overview(main) {
  const all = await Promise.all(world.runs.map((_, run) => ask(`/api/runs/${run}/steps`)));
  const curves = el("section", { id: "curves", "aria-label": "Curves" });
  put(main,
    el("div", { class: "cards" }, world.runs.map((run, place) => card(run, place))),
    el("div", { class: "tables" }, evaluations(all), differences()),
    el("h2", {}, "Curves"), controls(() => draw(curves)), curves);
  draw(curves);
}

function card(run, place) {
  const { config, manifest } = run;
  const done = (world.metrics[place] || []).at(-1)?.step ?? 0;
  const settings = Object.entries(config).filter(([, value]) => value !== null && value !== "");
  const rows = [...settings, ["command", (manifest.command_line || []).join(" ")],
    ["started", manifest.started_at], ["commit", manifest.source?.commit],
    ...Object.entries(manifest.versions || {})].filter(([, value]) => value !== undefined);
  return el("article", { class: "card" },
    el("h2", {}, el("span", { class: `key run${place % 6}` }), " ", run.name, " ",
      el("span", { class: run.live ? "badge live" : "badge" }, run.live ? "running" : run.live === null ? "running or not: this machine does not tell" : "not running")),
    facts([["algorithm", config.algorithm], ["environment", config.env && `${config.env}:${config.level}`],
      ["seed", String(config.seed ?? "–")], ["steps", `${done} of ${config.num_steps ?? "?"}`],
      ["trajectories", run.num_rows.toLocaleString("en")]]),
    el("p", { class: "links" }, el("a", { href: link("groups", place) }, "Groups by step"),
      el("a", { href: link("list", place) }, "All trajectories")),
    el("details", {}, el("summary", {}, "Settings and versions"),
      el("p", { class: "quiet path" }, run.path),
      table(["setting", "value"], rows.map(([name, value]) =>
        el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "wrap" }, text(value)))))));
}

const text = (value) => (typeof value === "object" ? JSON.stringify(value) : isNumber(value) ? String(value) : `${value}`);

function differences() {
  if (world.runs.length < 2) return null;
  const names = [...new Set(world.runs.flatMap((run) => Object.keys(run.config)))];
  const shown = (run, name) => (run.config[name] === undefined ? "–" : text(run.config[name] ?? "–") || "–");
  const other = names.filter((name) => name !== "run_dir" && new Set(world.runs.map((run) => shown(run, name))).size > 1);
  return el("section", {}, el("h2", {}, "Settings that differ"), other.length
    ? table(["setting", ...world.runs.map((run) => run.name)], other.map((name) => el("tr", {},
      el("th", { scope: "row" }, name), world.runs.map((run) => el("td", { class: "wrap" }, shown(run, name))))))
    : el("p", { class: "quiet" }, "None but the directory."));
}

function evaluations(all) {
  const rows = all.flatMap((steps, run) => steps.filter((step) => step.split === "eval").map((step) => el("tr", {},
    el("th", { scope: "row" }, el("span", { class: `key run${run % 6}` }), " ", nameOf(run)),
    el("td", { class: "number" }, step.step === 0 ? "0 (start)" : String(step.step)),
    el("td", { class: "number" }, short(step.success)),
    el("td", { class: "number" }, step.interval ? step.interval.map((end) => end.toFixed(3)).join("–") : "–"),
    el("td", { class: "number" }, short(step.reward)),
    el("td", { class: "number" }, step.trajectories.toLocaleString("en")),
    el("td", { class: "number" }, short(step.unscored)),
    el("td", {}, el("a", { href: link("list", run, { split: "eval", step: step.step }) }, "look")))));
  if (!rows.length) return null;
  const number = (name, title) => ({ name, number: true, title });
  return el("section", {}, el("h2", {}, "On held-out tasks"), table(["run", number("after step"), number("success"),
    number("95 % interval", "Wilson; every attempted task is in the denominator"), number("mean reward"),
    number("episodes"), number("unscored"), ""], rows));
}

function controls(redraw) {
  const from = el("input", { type: "number", min: 0, id: "from", value: zoom.from });
  const to = el("input", { type: "number", min: 0, id: "to", value: zoom.to });
  const change = () => {
    if (from.value === "" || to.value === "") return;
    [zoom.from, zoom.to] = [Number(from.value), Number(to.value)];
    redraw();
  };
  from.addEventListener("change", change);
  to.addEventListener("change", change);
  const metric = el("input", { type: "search", id: "metric", value: wanted.metric, placeholder: "gap, policy/kl …" });
  metric.addEventListener("input", () => { wanted.metric = metric.value; redraw(); });
  return el("form", { class: "controls", onsubmit: (event) => event.preventDefault() },
    el("label", {}, "Metric ", metric), el("label", {}, "Steps from ", from), el("label", {}, "to ", to),
    el("button", { type: "button", id: "unzoom", onclick: () => setZoom(null, null) }, "All steps"),
    el("span", { class: "quiet" }, "Drag in a chart to zoom."));
}

function setZoom(from, to) {
  [zoom.from, zoom.to] = [from, to];
  document.getElementById("from").value = from ?? "";
  document.getElementById("to").value = to ?? "";
  draw(document.getElementById("curves"));
}

// Pairs of neighbouring letters that two words share, of all that they have: 1 for equal words, 0 for strange ones.
function likeness(left, right) {
  const pairs = (word) => [...word.toLowerCase()].slice(1).map((letter, at) => word[at].toLowerCase() + letter);
  const [ours, theirs] = [pairs(left), pairs(right)];
  const shared = ours.filter((pair) => theirs.includes(pair)).length;
  return ours.length + theirs.length ? (2 * shared) / (ours.length + theirs.length) : 0;
}

function missing(names) {
  const near = (name) => Math.max(...[name, ...name.split(/[/_]/)].map((part) => likeness(wanted.metric, part)));
  const nearest = names.map((name) => [near(name), name]).filter(([size]) => size >= 0.4)
    .sort((a, b) => b[0] - a[0]).slice(0, 3).map(([, name]) => name);
  return `No metric has that in its name${nearest.length ? `; nearest: ${nearest.join(", ")}` : ""}.`;
}

function draw(place) {
  const names = [...new Set(world.metrics.flatMap((rows) => rows.slice(-20).concat(rows[0] || []).flatMap(Object.keys)))]
    .filter((name) => name !== "step").sort();
  const charts = (list) => el("div", { class: "charts" }, list.map((name) => chart(name, setZoom)));
  if (wanted.metric) {
    const found = names.filter((name) => name.includes(wanted.metric));
    place.replaceChildren(found.length ? charts(found) : el("p", { class: "quiet" }, missing(names)));
    return;
  }
  if (!names.length) {
    place.replaceChildren(el("p", { class: "quiet" }, "No step has been finished yet."));
    return;
  }
  const families = [...new Set(names.map((name) => name.split("/")[0]))];
  place.replaceChildren(charts(MAIN.filter((name) => names.includes(name))),
    ...families.map((family) => {
      const members = names.filter((name) => name.split("/")[0] === family);
      const section = el("details", { open: opened.has(family) }, el("summary", {}, `${family}/ `,
        el("span", { class: "quiet" }, count(members.length, "metric"))));
      const show = () => { if (section.open && !section.querySelector(".charts")) section.append(charts(members)); };
      section.addEventListener("toggle", () => { if (section.open) opened.add(family); else opened.delete(family); show(); });
      show();
      return section;
    }));
}
