// Which page is shown, the keyboard, and looking again while a run goes on.
"use strict";

const PAGES = { overview, groups, list, trajectory };
const REFRESH_MS = 2000;

async function show() {
  const main = document.getElementById("main");
  const where = route();
  const page = PAGES[where.page];
  world.drawn += 1;
  try {
    if (!page || !world.runs[where.run]) throw new Error(`There is no page ${location.hash}; the first one is #/`);
    await page(main, where);
    document.title = `${where.page} · ${nameOf(where.run)} · whetstone`;
  } catch (error) {
    main.replaceChildren(el("h2", {}, "Nothing to show"), el("p", { class: "problem" }, error.message));
  }
  frame(where);
  main.dataset.shown = location.hash || "#/";
}

function frame(where) {
  const here = (page) => (where.page === page ? "page" : null);
  const entries = [["overview", "Overview"], ["groups", "Groups"], ["list", "Trajectories"]];
  const run = world.runs[where.run] ? where.run : 0;
  const links = entries.map(([page, name]) => el("a", { href: link(page, run), "aria-current": here(page) }, name));
  const choice = world.runs.length < 2 || where.page === "overview" ? null : el("select", { "aria-label": "Run", id: "run",
    onchange: (event) => { location.hash = link(where.page === "trajectory" ? "list" : where.page, event.target.value); } },
  world.runs.map((each, place) => el("option", { value: place, selected: place === run }, each.name)));
  document.getElementById("nav").replaceChildren(...links, ...(choice ? [choice] : []));
  status();
}

function status() {
  const reading = world.runs.filter((run) => run.bytes_read < run.bytes);
  const parts = reading.map((run) => `reading ${run.name}: ${megabytes(run.bytes_read)} of ${megabytes(run.bytes)}`);
  if (embedded) parts.push("exported file");
  document.getElementById("status").textContent = parts.join("; ");
  const texts = world.runs.flatMap((run) => [...run.problems, run.note].filter(Boolean).map((text) => `${run.name}: ${text}`));
  const place = document.getElementById("problems");
  place.hidden = texts.length === 0;
  if (place.dataset.count !== String(texts.length)) {
    place.dataset.count = texts.length;
    place.replaceChildren(...texts.map((text) => el("p", {}, text)));
  }
}

async function look() {
  const before = world.runs;
  world.runs = await ask("/api/runs");
  let isNew = false;
  for (const [place, run] of world.runs.entries()) {
    const isSame = before[place]?.metrics_generation === run.metrics_generation;
    const known = isSame ? world.metrics[place] || [] : [];
    world.metrics[place] = run.num_metrics > known.length
      ? known.concat(await ask(`/api/runs/${place}/metrics`, { start: known.length })) : known;
    const old = before[place];
    isNew ||= !old || !isSame || run.num_metrics !== old.num_metrics || run.num_rows !== old.num_rows || run.live !== old.live;
  }
  return isNew;
}

async function keepLooking() {
  try {
    const isNew = await look();
    const busy = document.activeElement?.closest("form, details");
    if (isNew && route().page === "overview" && !busy) await show();
    else status();
  } catch (error) {
    document.getElementById("status").textContent = `no answer: ${error.message}`;
  }
  setTimeout(keepLooking, REFRESH_MS);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
  const key = { j: "next", k: "prev", u: "up" }[event.key];
  if (!key) return;
  if (route().page === "list") { moveInList({ next: 1, prev: -1 }[key] || 0); return; }
  const target = document.querySelector(`[data-jump="${key}"][href]`);
  if (target) location.hash = target.getAttribute("href");
});

function moveInList(by) {
  const links = [...document.querySelectorAll("#rows tbody a")];
  const at = links.indexOf(document.activeElement);
  links[Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
}

document.getElementById("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || (document.documentElement.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
});

addEventListener("hashchange", () => { scrollTo(0, 0); show(); });

(async () => {
  try {
    await look();
    await show();
  } catch (error) {
    document.getElementById("main").replaceChildren(el("p", { class: "problem" }, `Nothing can be shown: ${error.message}`));
  }
  ask("/api/words").then((words) => { world.words = words; if (route().page === "overview") show(); }, () => {});
  if (!embedded) setTimeout(keepLooking, REFRESH_MS);
})();
