/** Curves of several series over the same axes, as an SVG of the size that there is room for. */
import { svg } from "./dom.js";
import { number, saying, say } from "./words.js";

const LEFT = 52;
const TOP = 12;
const BOTTOM = 40;
const RIGHT = 26;

/** Numbers that are easy to read, about `count` of them, from `low` to `high`. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? rough;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9 && found.length < 50; k += 1) found.push(k * step);
  return { found, digits: Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9))) };
}

/** As few points as can be told apart: of each bucket the lowest and the highest, in their order. */
export function thinned(points, most) {
  const size = Math.ceil(points.length / most);
  if (size < 3) return points;
  const found = [];
  for (let at = 0; at < points.length; at += size) {
    const bucket = points.slice(at, at + size);
    const by = [...bucket].sort((a, b) => a[1] - b[1]);
    found.push(...[by[0], by.at(-1)].sort((a, b) => a[0] - b[0]));
  }
  return [...found.slice(0, -1), points.at(-1)];
}

/**
 * {root, x(step), stepAt(pixel), point(step | null)}; series are {points: [[step, value]], slot, dashed, label}.
 *
 * Null where no series has a point. Marks on a dashed line and numbers at the ends say the same as colours do.
 */
export function curves(series, width) {
  const all = series.flatMap(({ points }) => points);
  if (all.length === 0) return null;
  const height = width < 520 ? 260 : 340;
  const [steps, values] = [0, 1].map((k) => all.map((point) => point[k]));
  const extent = (list) => list.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const last = extent(steps)[1] || 1;
  let [low, high] = extent(values);
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  [low, high] = [low - margin, high + margin];
  const right = width - RIGHT;
  const floor = height - BOTTOM;
  const x = (step) => LEFT + (step / last) * (right - LEFT);
  const y = (value) => floor - ((value - low) / (high - low)) * (floor - TOP);
  const at = ([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;

  const root = svg("svg", { class: "curve", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const across = ticks(0, last, width < 520 ? 4 : 8);
  const up = ticks(low, high, 6);
  for (const value of up.found) {
    root.append(svg("line", { class: "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }), svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, number(value, up.digits)));
  }
  for (const value of across.found) {
    root.append(svg("line", { class: "tick", x1: x(value), x2: x(value), y1: floor, y2: floor + 4 }), svg("text", { x: x(value), y: floor + 18, "text-anchor": "middle" }, number(value, across.digits)));
  }
  root.append(svg("line", { class: "axis", x1: LEFT, x2: right, y1: floor, y2: floor }));
  root.append(say(svg("text", { class: "name", x: right, y: height - 4, "text-anchor": "end" }), "axis_step"));
  root.append(say(svg("text", { class: "name", x: 0, y: TOP + 2 }), "axis_loss"));
  const ends = [];
  for (const { points, slot, dashed, label } of series) {
    if (points.length === 0) continue;
    const few = thinned(points, right - LEFT);
    const group = svg("g", { class: `series c${slot} ${dashed ? "dashed" : ""}` }, svg("polyline", { points: few.map(at).join(" ") }));
    if (dashed && points.length < 60) for (const [step, value] of points) group.append(svg("circle", { cx: x(step), cy: y(value), r: 3 }));
    if (points.length === 1 && !dashed) group.append(svg("circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: 3 }));
    root.append(group);
    if (label !== undefined) ends.push([x(points.at(-1)[0]), y(points.at(-1)[1]), label, slot]);
  }
  ends.sort((a, b) => a[1] - b[1]);
  for (const [n, [px, py, label, slot]] of ends.entries()) { // labels of ends that lie near each other stand below each other
    if (n > 0 && py - ends[n - 1][1] < 13) ends[n][1] = ends[n - 1][1] + 13;
    root.append(svg("text", { class: `end c${slot}`, x: px + 6, y: ends[n][1] + 4 }, label));
  }
  const line = svg("line", { class: "cursor", y1: TOP, y2: floor, visibility: "hidden" });
  root.append(line);
  const point = (step) => {
    line.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const name of ["x1", "x2"]) line.setAttribute(name, x(step));
  };
  return { root, point, stepAt: (pixel) => ((pixel - LEFT) / (right - LEFT)) * last };
}

/** A piece of a series' line, for a legend. */
export function sample(slot, dashed) {
  const group = svg("g", { class: `series c${slot} ${dashed ? "dashed" : ""}` }, svg("polyline", { points: "0,6 28,6" }));
  if (dashed) group.append(svg("circle", { cx: 14, cy: 6, r: 3 }));
  return svg("svg", { class: "sample", width: 28, height: 12, "aria-hidden": "true" }, group);
}

export const legend = (slot, dashed, key) => [sample(slot, dashed), saying("span", {}, key)];
