/** Texts as vectors: how alike each two of them are. */
import { ask } from "./api.js";
import { el } from "./dom.js";
import { codeBox, enterSends, examples, form, modelChoice, textField, textOf, workplace } from "./parts.js";
import { number, saying } from "./words.js";

const PATH = "/v1/embeddings";
const MOST = 12; // texts

export function compare(models) {
  const choice = modelChoice(models);
  const code = codeBox();
  const source = textField("to_compare", 5);
  const place = workplace("compare");
  const out = el("section", { class: "out", "aria-live": "polite" });

  function begin() {
    const lines = textOf(source.field).split("\n").map((line) => line.trim()).filter(Boolean);
    const input = lines.slice(0, MOST);
    if (place.busy()) return;
    if (input.length < 2) return place.box.remark("two_lines");
    const body = { model: choice.model().id, input };
    place.run(async (signal) => {
      code.done([{ path: PATH, body }]);
      const { data } = await ask(PATH, body, signal);
      out.replaceChildren(table(input, data.map(({ embedding }) => embedding)));
      if (lines.length > MOST) out.prepend(saying("p", { class: "warning" }, "first_compared", { a: MOST, n: number(lines.length) }));
    }, begin);
  }

  function table(texts, vectors) {
    const sizes = vectors.map((vector) => Math.hypot(...vector));
    const cell = (a, b) => {
      const alike = vectors[a].reduce((sum, value, k) => sum + value * vectors[b][k], 0) / (sizes[a] * sizes[b] || 1);
      const level = Math.min(5, Math.ceil(Math.abs(alike) * 5));
      return el("td", { class: `number ${level === 0 || a === b ? "" : (alike > 0 ? "f" : "a") + level}` }, number(alike, 2));
    };
    return el("div", { class: "scroll", tabindex: "0" }, el("table", { class: "matrix" }, saying("caption", {}, "likeness"),
      el("thead", {}, el("tr", {}, el("td", {}), ...texts.map((_, n) => el("th", { scope: "col", class: "number" }, number(n + 1))))),
      el("tbody", {}, ...texts.map((text, a) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, `${number(a + 1)}. ${text}`), ...texts.map((_, b) => cell(a, b)))))));
  }

  enterSends(source.field, false, begin);
  const pick = (example) => {
    source.field.value = example.replaceAll(" / ", "\n");
    begin();
  };
  const root = el("div", { class: "columns" },
    el("div", { class: "column" }, choice.root,
      form({ class: "ask" }, begin, source.root, el("div", { class: "buttons" }, place.start, place.stop, place.note)),
      examples([["en", "She went home. / She walked home. / The price fell."], ["zh-Hans", "他回家了。 / 他走回家。 / 价格下降。"]], pick),
      place.box.root, out, code.root));
  return { root, end: place.end };
}
