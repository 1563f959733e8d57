// Lists of trajectories: the groups of one step, and every trajectory that passes the filters.
"use strict";

const number = (name, title) => ({ name, number: true, title });
const rewardText = (row) => (row.reward === null ? "unscored" : short(row.reward));
const shade = (value, low, high) => (value === null || high === low ? 0 : (value - low) / (high - low));
let searching = 0; // the newest search; older ones stop when they see another number

async function groups(main, { run, params }) {
  const steps = await ask(`/api/runs/${run}/steps`);
  if (!steps.length) {
    main.replaceChildren(el("h2", {}, "Groups"), el("p", { class: "quiet" }, "No trajectory is recorded yet."));
    return;
  }
  const chosen = steps.findIndex((step) => String(step.step) === params.step && step.split === (params.split || "train"));
  const trained = steps.findLastIndex((step) => step.split === "train");
  const place = chosen >= 0 ? chosen : Math.max(trained, 0);
  const step = steps[place];
  const at = (index) => link("groups", run, { step: steps[index].step, split: steps[index].split });
  const found = await ask(`/api/runs/${run}/groups`, { step: step.step, split: step.split });
  const rows = found.flatMap((group) => group.rows);
  const rewards = rows.map((row) => row.reward).filter(isNumber);
  const low = Math.min(...rewards), high = Math.max(...rewards);
  const choice = el("select", { id: "step", onchange: (event) => { location.hash = at(Number(event.target.value)); } },
    steps.map((entry, index) => el("option", { value: index, selected: index === place },
      `${entry.step} ${entry.split}, mean reward ${short(entry.reward)}`)));
  main.replaceChildren(
    el("h2", {}, "Groups ", el("span", { class: "quiet" }, nameOf(run))),
    el("div", { class: "controls" }, el("label", {}, "Step ", choice),
      jump("Previous step", place > 0 ? at(place - 1) : null, "prev"), jump("Next step", place + 1 < steps.length ? at(place + 1) : null, "next"),
      el("span", { class: "quiet" }, `${count(step.groups, "group")}, ${count(rows.length, "trajectory").replace("trajectorys", "trajectories")}, `
        + `mean reward ${short(step.reward)}`)),
    el("p", { class: "quiet" }, "One cell a member, with its reward; a group whose rewards are all equal teaches a relative advantage nothing."),
    table([number("group"), "environment", number("mean"), number("std"), "rewards of the members", "task"],
      found.map((group) => groupRow(run, group, low, high)), { id: "groups" }));
}

const jump = (name, target, key) => el("a", { class: target ? "button" : "button off", href: target, "data-jump": key }, name);

function groupRow(run, { rows: members, task }, low, high) {
  const rewards = members.map((row) => row.reward).filter(isNumber);
  const mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
  const std = mean === null ? null : Math.sqrt(rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / rewards.length);
  const { step, split, group } = members[0];
  return el("tr", { class: std === 0 ? "uniform" : null },
    el("td", { class: "number" }, el("a", { href: link("list", run, { step, split, group }) }, String(group))),
    el("td", {}, `${members[0].env}:${members[0].level ?? "–"}`),
    el("td", { class: "number" }, short(mean)), el("td", { class: "number" }, short(std)),
    el("td", {}, el("div", { class: "cells" }, members.map((row) => {
      const cell = el("a", { class: row.reward === null ? "cell none" : "cell", href: link("trajectory", run, { step, split, group }, row.line),
        title: `member ${row.member}: reward ${rewardText(row)}, ${row.stop_reason}, ${count(row.num_tokens, "token")}` },
      row.reward === null ? "×" : short(row.reward));
      cell.style.setProperty("--share", shade(row.reward, low, high));
      return cell;
    }))), el("td", { class: "task" }, task));
}

const FILTERS = [["step", "number"], ["split", ["train", "eval"]], ["env", "envs"], ["stop_reason", "stop_reasons"],
  ["error", ["none", "tool", "world"]], ["min_reward", "number"], ["max_reward", "number"], ["text", "search"]];
const LABELS = { env: "Environment", stop_reason: "Stop reason", min_reward: "Reward from", max_reward: "to", text: "Says" };

async function list(main, { run, params }) {
  const body = el("tbody", {});
  const more = el("p", { class: "quiet", role: "status", id: "found" });
  const shown = table([number("line"), number("step"), "split", number("group"), "environment", number("reward"), "stop reason",
    number("tool errors"), number("turns"), number("tokens"), number("policy", "version that sampled it")], [], { id: "rows" });
  shown.querySelector("tbody").replaceWith(body);
  main.replaceChildren(el("h2", {}, "Trajectories ", el("span", { class: "quiet" }, nameOf(run))),
    filterForm(run, params), more, shown);
  await showMore(run, params, body, more, 0);
}

async function showMore(run, params, body, more, start) {
  const mine = (searching += 1);
  const already = body.childElementCount;
  let next = start;
  do { // a search through text takes several requests, each of them short
    const page = await ask(`/api/runs/${run}/rows`, { ...params, start: next });
    if (mine !== searching) return;
    body.append(...page.rows.map((row) => listRow(run, params, row)));
    next = page.next_row;
    more.textContent = `${body.childElementCount.toLocaleString("en")} found so far …`;
  } while (next !== null && body.childElementCount - already < 200);
  more.replaceChildren(body.childElementCount ? `${body.childElementCount.toLocaleString("en")} shown` : "No trajectory passes these filters.");
  if (next !== null) {
    more.append(" ", el("button", { type: "button", id: "more", onclick: () => showMore(run, params, body, more, next) }, "Show more"));
  }
}

function filterForm(run, params) {
  const summary = world.runs[run];
  const fields = FILTERS.map(([name, kind]) => {
    const label = LABELS[name] || name[0].toUpperCase() + name.slice(1);
    const choices = Array.isArray(kind) ? kind : summary[kind];
    const input = choices
      ? el("select", { name }, el("option", { value: "" }, "any"), choices.map((value) =>
        el("option", { value, selected: params[name] === value }, value)))
      : el("input", { name, type: kind, value: params[name] ?? "", step: name.endsWith("reward") ? "any" : null });
    return el("label", {}, `${label} `, input);
  });
  const form = el("form", { class: "controls", id: "filters" }, fields,
    params.group === undefined ? null : el("label", {}, "Group ", el("input", { name: "group", type: "number", value: params.group })),
    el("button", {}, "Filter"), el("a", { class: "button", href: link("list", run) }, "Clear"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = link("list", run, Object.fromEntries(new FormData(form)));
  });
  form.addEventListener("change", (event) => { if (event.target.tagName === "SELECT") form.requestSubmit(); });
  return form;
}

function listRow(run, params, row) {
  const policy = row.oldest === row.newest ? short(row.oldest) : `${row.oldest}–${row.newest}`;
  return el("tr", {}, el("td", { class: "number" }, el("a", { href: link("trajectory", run, params, row.line) }, String(row.line))),
    el("td", { class: "number" }, String(row.step)), el("td", {}, row.split),
    el("td", { class: "number" }, `${row.group}·${row.member}`), el("td", {}, `${row.env}:${row.level ?? "–"}`),
    el("td", { class: "number" }, rewardText(row)), el("td", {}, row.stop_reason + (row.error && row.error !== "unscored" ? ` (${row.error})` : "")),
    el("td", { class: "number" }, String(row.tool_errors)), el("td", { class: "number" }, String(row.num_turns)),
    el("td", { class: "number" }, String(row.num_tokens)), el("td", { class: "number" }, policy));
}
