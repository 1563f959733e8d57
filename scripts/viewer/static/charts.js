// Line charts in SVG: every run in one chart, one zoom for all charts.
"use strict";

const zoom = { from: null, to: null };
const BOX = { width: 340, height: 190, left: 52, right: 12, top: 12, bottom: 26 };
const MAX_POINTS = 400;

// The (step, value) pairs of one metric of one run, within the zoom.
function series(run, name) {
  return (world.metrics[run] || [])
    .filter((row) => isNumber(row[name]) && (zoom.from === null || (row.step >= zoom.from && row.step <= zoom.to)))
    .map((row) => [row.step, row[name]]);
}

// A long series keeps the lowest and the highest point of each bucket: peaks stay visible.
function thinned(points) {
  if (points.length <= MAX_POINTS) return points;
  const size = Math.ceil(points.length / (MAX_POINTS / 2));
  const kept = [];
  for (let start = 0; start < points.length; start += size) {
    const bucket = points.slice(start, start + size);
    const low = bucket.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = bucket.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let place = Math.ceil(low / step); place * step <= high + step * 1e-9; place += 1) {
    found.push(Number((place * step).toPrecision(12)));
  }
  return found;
}

function extent(values, pad) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low === high) { const half = Math.abs(low) * 0.1 || 1; return [low - half, high + half]; }
  return [low - (high - low) * pad, high + (high - low) * pad];
}

function chart(name, onZoom) {
  const lines = world.runs.map((_, run) => series(run, name));
  const all = lines.flat();
  const words = world.words[name.replace(/^eval\//, "")] || "";
  const title = el("h3", { title: words }, name);
  const figure = el("figure", { class: "chart", "data-metric": name }, el("figcaption", {}, title));
  if (!all.length) {
    figure.append(el("p", { class: "quiet" }, "no value in these steps"));
    return figure;
  }
  const [x0, x1] = extent(all.map((point) => point[0]), 0);
  const [y0, y1] = extent(all.map((point) => point[1]), 0.06);
  const x = (step) => BOX.left + ((step - x0) / (x1 - x0)) * (BOX.width - BOX.left - BOX.right);
  const y = (value) => BOX.height - BOX.bottom - ((value - y0) / (y1 - y0)) * (BOX.height - BOX.top - BOX.bottom);
  const told = lines.map((points, run) => points.length
    ? `${nameOf(run)} from ${short(points[0][1])} to ${short(points.at(-1)[1])}` : `${nameOf(run)} has none`);
  const picture = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img",
    "aria-label": `${name}, steps ${Math.ceil(x0)} to ${Math.floor(x1)}: ${told.join("; ")}` });
  for (const tick of ticks(y0, y1, 4)) {
    picture.append(svg("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: BOX.left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(x0, x1, 5).filter(Number.isInteger)) {
    picture.append(svg("text", { class: "tick", x: x(tick), y: BOX.height - 8, "text-anchor": "middle" }, String(tick)));
  }
  lines.forEach((points, run) => {
    const path = thinned(points).map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    if (points.length === 1) picture.append(svg("circle", { class: `dot run${run % 6}`, r: 3, cx: x(points[0][0]), cy: y(points[0][1]) }));
    else picture.append(svg("polyline", { class: `line run${run % 6}`, points: path }));
  });
  figure.append(picture);
  follow(picture, { lines, x, x0, x1, onZoom, name });
  return figure;
}

// The pointer shows the values of the nearest step; dragging chooses the steps that are shown.
function follow(picture, { lines, x, x0, x1, onZoom, name }) {
  const tip = document.getElementById("tip");
  const cross = svg("line", { class: "cross", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
  const band = svg("rect", { class: "band", y: BOX.top, height: BOX.height - BOX.top - BOX.bottom, width: 0 });
  picture.append(band, cross);
  let start = null;
  const stepAt = (event) => {
    const box = picture.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * BOX.width;
    const part = (place - BOX.left) / (BOX.width - BOX.left - BOX.right);
    return Math.round(x0 + Math.min(Math.max(part, 0), 1) * (x1 - x0));
  };
  picture.addEventListener("pointermove", (event) => {
    const step = stepAt(event);
    cross.setAttribute("x1", x(step));
    cross.setAttribute("x2", x(step));
    cross.setAttribute("visibility", "visible");
    const values = lines.map((points, run) => [run, points.find((point) => point[0] === step)])
      .filter(([, point]) => point);
    tip.replaceChildren(el("strong", {}, `step ${step}`), ...values.map(([run, point]) =>
      el("div", {}, el("span", { class: `key run${run % 6}` }), ` ${nameOf(run)}: ${short(point[1])}`)));
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
    if (start !== null) {
      band.setAttribute("x", x(Math.min(start, step)));
      band.setAttribute("width", Math.abs(x(step) - x(start)));
    }
  });
  picture.addEventListener("pointerdown", (event) => {
    start = stepAt(event);
    picture.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  picture.addEventListener("pointerup", (event) => {
    const end = stepAt(event), begin = start;
    start = null;
    if (begin !== null && begin !== end) onZoom(Math.min(begin, end), Math.max(begin, end));
  });
  picture.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cross.setAttribute("visibility", "hidden");
  });
  picture.addEventListener("dblclick", () => onZoom(null, null));
}
