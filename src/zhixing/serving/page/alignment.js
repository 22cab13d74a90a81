/** How much each piece that was written took from each that was read, as a table with shades: the darker, the more. */
import { el } from "./dom.js";
import { number, say, sayAttribute, saying } from "./words.js";

const LEVELS = 5;
const FAINT = 0.05; // of the largest weight: less is not shown

/** weights[t][s] of output piece t and input piece s. The strongest of a row has a frame, so colour is not the only sign. */
export function matrix(sources, outputs, weights) {
  const most = Math.max(...weights.flat(), Number.MIN_VALUE);
  const note = saying("p", { class: "note" }, "alignment_note");
  const cell = (row, s) => {
    const share = weights[row][s] / most;
    const strongest = weights[row].indexOf(Math.max(...weights[row])) === s;
    const level = share < FAINT ? "" : `f${Math.min(LEVELS, Math.ceil(share * LEVELS))}`;
    const values = { a: seen(outputs[row]), b: seen(sources[s]), n: number(weights[row][s], 3) };
    return el("td", {
      class: `${level} ${strongest ? "strongest" : ""}`,
      mouseenter: () => say(note, "alignment_cell", values), mouseleave: () => say(note, "alignment_note"),
    }, el("span", { class: "unseen" }, share < FAINT ? "" : number(weights[row][s], 2)));
  };
  const head = el("tr", {}, el("td", {}), ...sources.map((token) => el("th", { scope: "col", dir: "auto" }, el("span", {}, seen(token)))));
  const rows = outputs.map((token, row) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, seen(token)), ...sources.map((_, s) => cell(row, s))));
  const table = el("table", { class: "aligned" }, saying("caption", { class: "unseen" }, "alignment"), el("thead", {}, head), el("tbody", {}, ...rows));
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "group" }, table);
  sayAttribute(scroll, "aria-label", "alignment");
  return el("div", {}, scroll, note);
}

/** Blanks that can be seen. */
function seen(token) {
  return token.trim() === "" ? "\u2423" : token.trim();
}
