"use strict";
/* Line charts of runs: one line for each run, or with three and more their median and the band from least to most. */

const LINE_COLOURS = ["#2f6fde", "#d9730d", "#2e9e5b", "#b0439b", "#8a8f98", "#c0392b", "#0a8f8f"];
const WIDE = 380, HIGH = 190, LEFT = 56, BOTTOM = 20;

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/* With digits enough to tell it from numbers that are a step away: ratios differ in their fourth. */
const shortNumber = (value, step) => {
  const size = Math.abs(value);
  const digits = Math.min(9, Math.max(3, Math.ceil(Math.log10(size / step || 1)) + 1));
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(Math.max(1, digits - 2)) : String(Number(value.toPrecision(digits)));
};

/* Titles to lines of every run: [label, points, band], a band where there are three runs and more. */
function joinedPanels(runs, names) {
  const titles = new Map();
  runs.forEach((panels, run) => {
    for (const { title, unit, lines } of panels) {
      if (!titles.has(title)) titles.set(title, { unit, labels: new Map() });
      for (const [label, points] of lines) {
        const labels = titles.get(title).labels;
        if (!labels.has(label)) labels.set(label, []);
        labels.get(label).push([run, points]);
      }
    }
  });
  return [...titles].map(([title, { unit, labels }]) => [title, unit, [...labels].flatMap(([label, found]) => joinedLines(label, found, names))]);
}

function joinedLines(label, found, names) {
  if (names.length < 3) {
    return found.map(([run, points]) => ({ label: names.length > 1 ? `${label}, ${names[run]}` : label, points, band: null }));
  }
  const at = new Map();
  for (const [, points] of found) {
    for (const [x, y] of points) at.set(x, [...(at.get(x) || []), y]);
  }
  const sorted = [...at].sort((a, b) => a[0] - b[0]).map(([x, ys]) => [x, ys.sort((a, b) => a - b)]);
  const middle = (ys) => (ys[(ys.length - 1) >> 1] + ys[ys.length >> 1]) / 2;
  return [{
    label: `${label}, median of ${found.length} runs`,
    points: sorted.map(([x, ys]) => [x, middle(ys)]),
    band: sorted.map(([x, ys]) => [x, ys[0], ys[ys.length - 1]]),
  }];
}

function chart(title, unit, lines) {
  const figure = element("figure");
  const caption = element("figcaption", "", title);
  caption.append(element("span", "dim", unit && unit !== "%" ? ` · ${unit}` : ""));
  const legend = element("div", "legend");
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title} against the iteration`, tabindex: "0" });
  figure.append(caption, drawing, legend);
  const all = lines.flatMap((line) => [...line.points.map((p) => p[1]), ...(line.band || []).flatMap((p) => p.slice(1))]);
  const xs = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  let low = unit === "%" ? Math.min(0, ...all) : Math.min(...all);
  let high = Math.max(...all);
  if (high - low < 1e-12) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const first = xs[0], last = xs[xs.length - 1];
  const X = (x) => LEFT + (last === first ? 0.5 : (x - first) / (last - first)) * (WIDE - LEFT - 10);
  const Y = (y) => 8 + (1 - (y - low) / (high - low)) * (HIGH - BOTTOM - 14);
  const step = (high - low) / 3;
  const number = (value) => (unit === "%" ? `${shortNumber(100 * value, 100 * step)} %` : shortNumber(value, step));
  for (let i = 0; i <= 3; i++) {
    const y = low + ((high - low) * i) / 3;
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDE - 10, y1: Y(y), y2: Y(y) }));
    drawing.append(svg("text", { x: LEFT - 5, y: Y(y) + 4, "text-anchor": "end" }, number(y)));
  }
  for (const x of new Set([first, xs[xs.length >> 1], last])) {
    drawing.append(svg("text", { x: X(x), y: HIGH - 5, "text-anchor": "middle" }, String(x)));
  }
  const entries = lines.map((line, i) => {
    const stroke = LINE_COLOURS[i % LINE_COLOURS.length];
    if (line.band) {
      const edge = [...line.band.map(([x, , y]) => `${X(x)},${Y(y)}`), ...line.band.map(([x, y]) => `${X(x)},${Y(y)}`).reverse()];
      drawing.append(svg("polygon", { points: edge.join(" "), fill: stroke, opacity: 0.18 }));
    }
    drawing.append(svg("polyline", { points: line.points.map(([x, y]) => `${X(x)},${Y(y)}`).join(" "), fill: "none", stroke, "stroke-width": 1.8 }));
    if (line.points.length < 60) {
      for (const [x, y] of line.points) drawing.append(svg("circle", { cx: X(x), cy: Y(y), r: 2.2, fill: stroke }));
    }
    const entry = element("span");
    const swatch = element("span", "swatch");
    swatch.style.backgroundColor = stroke;
    const text = element("span", "", line.label);
    entry.append(swatch, text);
    legend.append(entry);
    return [line, text];
  });
  readable(drawing, xs, X, (x) => {
    for (const [line, text] of entries) {
      const point = line.points.find((p) => p[0] === x);
      const range = line.band && line.band.find((p) => p[0] === x);
      const value = point ? ` ${x}: ${number(point[1])}${range ? ` (${number(range[1])} to ${number(range[2])})` : ""}` : "";
      text.textContent = line.label + (x === null ? "" : value);
    }
  });
  return figure;
}

/* Has pointer and arrow keys pick an iteration, which a dashed line marks. */
function readable(drawing, xs, X, say) {
  const mark = svg("line", { class: "mark", y1: 8, y2: HIGH - BOTTOM, x1: 0, x2: 0, visibility: "hidden" });
  drawing.append(mark);
  let place = -1;
  const pick = (to) => {
    place = to;
    mark.setAttribute("visibility", to < 0 ? "hidden" : "visible");
    if (to >= 0) for (const end of ["x1", "x2"]) mark.setAttribute(end, X(xs[to]));
    say(to < 0 ? null : xs[to]);
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDE;
    pick(xs.reduce((best, x, i) => (Math.abs(X(x) - at) < Math.abs(X(xs[best]) - at) ? i : best), 0));
  });
  drawing.addEventListener("pointerleave", () => pick(-1));
  drawing.addEventListener("blur", () => pick(-1));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    pick(Math.max(0, Math.min(xs.length - 1, place + step)));
  });
}
