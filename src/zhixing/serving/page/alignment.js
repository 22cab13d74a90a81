/** How much each token takes from each, as a table with shades: the darker, the more. */
import { el } from "./dom.js";
import { number, say, sayAttribute, saying } from "./words.js";

const FAINT = 0.02; // of the largest weight: less could not be seen
const MOVES = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

/**
 * weights[t][s] of row t and column s. The strongest of a row has a frame, so colour is not the only sign.
 *
 * The number of a cell is told where it is pointed at, or where arrow keys go; the table has them all for those who
 * hear it. `caption`, `values` and `note` are what words.js has of it.
 */
export function matrix(columns, rows, weights, { caption = "alignment", values = {}, note: under = "alignment_note" } = {}) {
  const most = Math.max(...weights.map((row) => Math.max(...row)), Number.MIN_VALUE);
  const note = saying("p", { class: "note" }, under);
  let at = null; // the cell that is told: [row, column]

  const cells = weights.map((row) => {
    const strongest = row.indexOf(Math.max(...row));
    return row.map((weight, s) => {
      const share = weight / most;
      const cell = el("td", { class: s === strongest ? "strongest" : null }, el("span", { class: "unseen" }, share < FAINT ? "" : number(weight, 2)));
      if (share >= FAINT) cell.style.setProperty("--share", share.toFixed(3));
      return cell;
    });
  });
  const show = (next) => {
    if (at !== null) cells[at[0]][at[1]].classList.remove("told");
    at = next;
    if (at === null) return say(note, under);
    const [row, column] = at;
    cells[row][column].classList.add("told");
    return say(note, "alignment_cell", { a: seen(rows[row]), b: seen(columns[column]), n: number(weights[row][column], 3) });
  };
  const pointed = (event) => {
    const cell = event.target.closest("td");
    const row = cells.findIndex((each) => each.includes(cell));
    show(row < 0 ? null : [row, cells[row].indexOf(cell)]);
  };
  const moved = (event) => {
    const move = MOVES[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const [row, column] = at === null ? [0, 0] : [at[0] + move[0], at[1] + move[1]];
    if (cells[row]?.[column] === undefined) return;
    show([row, column]);
    cells[row][column].scrollIntoView({ block: "nearest", inline: "nearest" });
  };

  const head = el("tr", {}, el("td", {}), ...columns.map((token) => el("th", { scope: "col", dir: "auto" }, el("span", {}, seen(token)))));
  const body = rows.map((token, row) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, seen(token)), ...cells[row]));
  const table = el("table", { class: "aligned" }, saying("caption", { class: "unseen" }, caption, values), el("thead", {}, head), el("tbody", {}, ...body));
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "group", mouseover: pointed, mouseleave: () => show(null), keydown: moved, blur: () => show(null) }, table);
  sayAttribute(scroll, "aria-label", caption, values);
  const scale = el("p", { class: "scale", "aria-hidden": "true" }, number(0), el("span", { class: "ramp" }), number(most, 2));
  return el("div", {}, scroll, scale, note);
}

/** Blanks that can be seen. */
function seen(token) {
  return token.trim() === "" ? "\u2423" : token.trim();
}
