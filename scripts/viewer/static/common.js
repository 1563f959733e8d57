// Shared by every page: asking the server (or the export's own data), making elements, writing numbers.
// Everything that a model wrote becomes text nodes or attributes; nothing is ever parsed as markup.
"use strict";

const embedded = (() => {
  const block = document.getElementById("embedded");
  return block ? JSON.parse(block.textContent) : null;
})();

async function ask(path, params = {}) {
  if (embedded) return askEmbedded(path, params);
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value != null));
  const reply = await fetch(query.size ? `${path}?${query}` : path);
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error || `the server answered ${reply.status}`);
  return value;
}

function askEmbedded(path, params) {
  const value = embedded[path];
  if (value === undefined) throw new Error("This is not in the exported file; open the run itself to see it.");
  if (path.endsWith("/rows")) return pageOf(value.filter((row) => admits(row, params)), params);
  if (path.endsWith("/groups")) {
    return value.filter((group) => group.rows.length && group.step === Number(params.step) && group.split === params.split);
  }
  if (path.endsWith("/metrics")) return value.slice(params.start || 0);
  return value;
}

// The answers of Answers.rows in scripts/viewer/api.py, for an export.
function pageOf(rows, { near }) {
  if (near === undefined) return { rows, next_row: null };
  const at = rows.findIndex((row) => row.line === near);
  return { previous: rows.findLast((row) => row.line < near) ?? null, next: rows.find((row) => row.line > near) ?? null,
    earlier: null, later: null, number: at < 0 ? null : at + 1 };
}

// The filters of scripts/viewer/query.py, for an export.
function admits(row, wanted) {
  const given = (name) => wanted[name] !== undefined && wanted[name] !== "";
  const equal = ["step", "split", "group", "env", "stop_reason"];
  if (equal.some((name) => given(name) && String(row[name]) !== String(wanted[name]))) return false;
  if (given("min_reward") && !(row.reward !== null && row.reward >= Number(wanted.min_reward))) return false;
  if (given("max_reward") && !(row.reward !== null && row.reward <= Number(wanted.max_reward))) return false;
  if (wanted.error === "none" && (row.error !== null || row.tool_errors > 0)) return false;
  if (wanted.error === "tool" && row.tool_errors === 0) return false;
  if (wanted.error === "world" && row.error === null) return false;
  if (!given("text")) return true;
  const said = embedded[`/api/runs/0/trajectories/${row.line}`].messages;
  const texts = said.flatMap((message) => [message.text, ...message.tool_calls.map((call) => call.text)]);
  return texts.some((text) => text.toLowerCase().includes(wanted.text.toLowerCase()));
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
// As replaceChildren, but null is nothing (not the word "null") and lists are flattened.
function put(node, ...children) {
  node.replaceChildren();
  fill(node, {}, children);
}
const SVG = "http://www.w3.org/2000/svg";
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const isNumber = (value) => typeof value === "number";

// Four significant digits, without a tail of zeros; what is no finite number arrives as its name.
function short(value) {
  if (value === null || value === undefined) return "–";
  if (!isNumber(value)) return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("-", "−").replace("e−", "e-");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}
const count = (value, noun) => `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;
const seconds = (value) => (value < 1 ? `${short(Number((value * 1000).toPrecision(3)))} ms` : `${short(value)} s`);
const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 0 })} MB`;

function table(headers, rows, attributes = {}) {
  const head = headers.map((header) =>
    el("th", { scope: "col", class: header.number ? "number" : null, title: header.title }, header.name ?? header));
  return el("div", { class: "scroll" }, el("table", attributes,
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows)));
}
const facts = (pairs) => el("dl", { class: "facts" }, pairs
  .filter(([, value]) => value !== null && value !== undefined && value !== "")
  .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

// Routes: #/page/RUN/THING?filters
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [page, run, thing] = path.split("/");
  return { page: page || "overview", run: Number(run || 0), thing, params: Object.fromEntries(new URLSearchParams(query)) };
}
function link(page, run, params = {}, thing = null) {
  const kept = Object.entries(params).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(kept).toString();
  return `#/${page}/${run}${thing === null ? "" : `/${thing}`}${query ? `?${query}` : ""}`;
}

const world = { runs: [], metrics: [], words: {}, drawn: 0 };
const nameOf = (run) => world.runs[run].name;
