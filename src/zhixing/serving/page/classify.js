/** What a text is: each label's probability, and the words that speak for it and against it. */
import { ask } from "./api.js";
import { el } from "./dom.js";
import { bar, codeBox, enterSends, examples, form, modelChoice, textField, textOf, workplace } from "./parts.js";
import { number, percent, say, sayAttribute, saying, told } from "./words.js";

const LEVELS = 5; // shades of a word's weight
const FAINT = 0.05; // of the largest weight: less is not shown
const MOST_EXPLAINED = 5000; // characters
const TOP = 8;

export function classify(models) {
  const choice = modelChoice(models);
  const code = codeBox();
  const source = textField("to_classify", 5);
  const place = workplace("classify");
  const answer = el("section", { class: "out", "aria-live": "polite" });
  const why = el("section", { class: "out", "aria-live": "polite" });

  function begin() {
    const input = textOf(source.field);
    if (place.busy()) return;
    if (input.trim() === "") return place.box.remark("blank");
    const model = choice.model().id;
    const asked = { path: "/v1/classify", body: { model, input } };
    place.run(async (signal) => {
      code.done([asked]);
      const { data: [found] } = await ask(asked.path, asked.body, signal);
      answer.replaceChildren(...answered(found, asked));
      why.replaceChildren();
      await explained(asked, undefined, signal);
    }, begin);
  }

  function answered(found, asked) {
    if (found.score !== undefined) return [el("h2", {}, saying("span", {}, "value"), ` ${number(found.score, 3)}`)];
    const several = found.labels !== undefined;
    const title = several && found.labels.length === 0 ? saying("span", {}, "no_label") : el("span", { dir: "auto" }, several ? found.labels.join(", ") : found.label);
    const heading = el("h2", {}, title, several ? "" : el("span", { class: "value" }, ` ${percent(found.probability)}`));
    const rows = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]).map(([label, share]) => {
      const button = el("button", { type: "button", class: "quiet", dir: "auto", click: () => explain(asked, label) }, label);
      sayAttribute(button, "title", "why", { label });
      const chosen = several ? found.labels.includes(label) : label === found.label;
      return el("tr", { class: chosen ? "chosen" : null }, el("th", { scope: "row" }, button), el("td", { class: "number" }, percent(share)), el("td", { class: "bars" }, bar(share)));
    });
    const heads = ["label", "probability"].map((key) => saying("th", { scope: "col", class: key === "label" ? null : "number" }, key));
    const table = el("table", {}, saying("caption", {}, "labels"), el("thead", {}, el("tr", {}, ...heads, el("td", {}))), el("tbody", {}, ...rows));
    const notes = [];
    if (found.polarity !== undefined) notes.push(saying("p", { class: "note" }, "polarity", { n: number(found.polarity, 2) }));
    if (found.truncated) notes.push(saying("p", { class: "warning" }, "read_beginning"));
    return [heading, ...notes, table];
  }

  function explain(asked, label) {
    place.run((signal) => explained(asked, label, signal), () => explain(asked, label));
  }

  async function explained(asked, label, signal) {
    const { model, input } = asked.body;
    if ([...input].length > MOST_EXPLAINED) {
      why.replaceChildren(saying("p", { class: "note" }, "too_long_to_explain"));
      return;
    }
    const body = { model, input };
    if (label !== undefined) body.label = label;
    code.done([asked, { path: "/v1/explain", body }]);
    const found = await ask("/v1/explain", body, signal);
    why.replaceChildren(...reasons(found, input));
  }

  function reasons(found, input) {
    const characters = [...input]; // the server counts characters, and a script's strings count halves of some
    const largest = Math.max(0, ...found.words.map(({ weight }) => Math.abs(weight)));
    const text = el("div", { class: "text", dir: "auto" });
    let at = 0;
    for (const { start, end, weight } of found.words) {
      text.append(characters.slice(at, start).join(""));
      const word = characters.slice(start, end).join("");
      const share = largest > 0 ? Math.abs(weight) / largest : 0;
      const level = Math.min(LEVELS, Math.ceil(share * LEVELS));
      if (share < FAINT) text.append(word);
      else text.append(el("mark", { class: `${weight > 0 ? "f" : "a"}${level}`, title: signed(weight) }, word));
      at = end;
    }
    text.append(characters.slice(at).join(""));
    const legend = el("p", { class: "legend" },
      el("span", { class: "f4" }, saying("span", {}, "speaks_for")), " ", el("span", { class: "a4" }, saying("span", {}, "speaks_against")));
    const title = found.label ? ["because", { label: found.label }] : ["because_value"];
    const notes = [saying("p", { class: "note" }, "moved")];
    if (found.left_out > 0) notes.push(saying("p", { class: "warning" }, "read_beginning"));
    if (found.complete === false && found.gap !== null) notes.push(saying("p", { class: "warning" }, "not_complete", { n: number(found.gap, 3) }));
    return [saying("h2", {}, ...title), legend, text, weightiest(found.words, characters, largest), ...notes];
  }

  function weightiest(words, characters, largest) {
    const together = new Map();
    for (const { start, end, weight } of words) {
      const word = characters.slice(start, end).join("").toLowerCase();
      together.set(word, (together.get(word) ?? 0) + weight);
    }
    const rows = [...together].filter(([, weight]) => weight !== 0).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, TOP);
    if (rows.length === 0) return saying("p", {}, "weighs_nothing");
    const most = Math.max(largest, Math.abs(rows[0][1]));
    return el("table", {}, saying("caption", {}, "weightiest"),
      el("thead", {}, el("tr", {}, saying("th", { scope: "col" }, "word"), saying("th", { scope: "col", class: "number" }, "weight"), el("td", {}))),
      el("tbody", {}, ...rows.map(([word, weight]) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, word),
        el("td", { class: "number" }, signed(weight)), el("td", { class: "bars" }, bar(Math.abs(weight) / most, weight > 0 ? "f" : "a"))))));
  }

  enterSends(source.field, false, begin);
  const pick = (example) => {
    source.field.value = example;
    begin();
  };
  const root = el("div", { class: "columns even" },
    el("div", { class: "column" }, choice.root,
      form({ class: "ask" }, begin, source.root, el("div", { class: "buttons" }, place.start, place.stop, place.note)),
      examples([["en", "A slow start, but a wonderful, moving film."], ["zh-Hans", "房间很干净，可是隔音不好。"]], pick),
      place.box.root, code.root),
    el("div", { class: "column aside" }, answer, why));
  return { root, end: place.end };
}

function signed(weight) {
  return (weight > 0 ? "+" : "") + number(weight, 3);
}
