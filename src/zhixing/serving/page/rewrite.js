/** Translations and summaries: the best text, and the others that the search found. */
import { ask } from "./api.js";
import { controls } from "./controls.js";
import { matrix } from "./alignment.js";
import { el, newId } from "./dom.js";
import { codeBox, enterSends, examples, form, modelChoice, textField, textOf, workplace } from "./parts.js";
import { number, say, saying, unsay } from "./words.js";

const BEST = 3; // the server follows so many beams at least
const ENDS = 2; // tokens that a model may put around a text
const TEXTS = {
  translate: [["en", "Open the file and print the page."], ["zh-Hans", "打开这个文件。"]],
  summarize: [
    ["en", "The library will be closed from Monday to Wednesday while the heating is repaired. Books may be returned at the side door, and nobody will be charged for a book that is late by those three days."],
    ["zh-Hans", "图书馆将于周一至周三闭馆检修暖气。读者可在侧门还书，因闭馆而逾期三天以内的图书不收取费用。"],
  ],
};

export const translate = (models) => rewrite(models, "translate", "to_translate", "translation");
export const summarize = (models) => rewrite(models, "summarize", "to_summarize", "summary");

function rewrite(models, key, asking, heading) {
  const path = `/v1/${key}`;
  const target = el("select", { id: newId("target") });
  const targets = el("div", { class: "model" }, saying("label", { for: target.id }, "target"), target);
  const choice = modelChoice(models, ({ target_languages: languages }) => {
    targets.hidden = !languages?.length;
    target.replaceChildren(...(languages ?? []).map((code) => el("option", { value: code }, code)));
  });
  const settings = controls(["num_beams"]);
  const code = codeBox();
  const source = textField(asking, 5);
  const place = workplace(key);
  const text = el("div", { class: "text", dir: "auto" });
  const size = el("p", { class: "note" });
  const others = el("details", { hidden: true });
  const picture = el("section", { class: "out", hidden: true });
  const out = el("section", { class: "out", "aria-live": "polite", hidden: true }, saying("h2", {}, heading), text, size, others);

  function begin() {
    const input = textOf(source.field);
    if (place.busy()) return;
    if (input.trim() === "") return place.box.remark("blank");
    const how = settings.values();
    const body = { model: choice.model().id, input, n_best: Math.min(BEST, how.num_beams ?? BEST), ...how };
    if (!targets.hidden) body.target_language = target.value;
    place.run(async (signal) => {
      code.done([{ path, body }]);
      const { data: [found], usage } = await ask(path, body, signal);
      text.textContent = found.text;
      if (found.text === "") say(size, "empty");
      else if (key === "summarize") say(size, "share", { a: number([...input].length), b: number([...found.text].length) });
      else unsay(size);
      const more = found.alternatives.filter((other) => other.text !== found.text);
      others.hidden = more.length === 0;
      others.replaceChildren(saying("summary", {}, "others", { n: more.length }), el("ol", {}, ...more.map((other) =>
        el("li", {}, el("span", { dir: "auto" }, other.text), " ", saying("span", { class: "note" }, "score", { n: number(other.score, 2) })))));
      out.hidden = false;
      picture.hidden = true;
      const fits = usage.prompt_tokens < (choice.model().max_model_len ?? Infinity) - ENDS;
      if (found.text !== "" && fits) await aligned({ ...body, output: found.text }, [{ path, body }], signal);
    }, begin);
  }

  /** What was read for each piece; a text of several sentences may be too long to be read at once, and has no picture. */
  async function aligned({ model, input: source, output, target_language: language }, before, signal) {
    const body = { model, input: source, output, ...(language === undefined ? {} : { target_language: language }) };
    try {
      const found = await ask("/v1/align", body, signal);
      picture.replaceChildren(saying("h2", {}, "alignment"), matrix(found.input_tokens, found.output_tokens, found.weights));
      picture.hidden = false;
      code.done([...before, { path: "/v1/align", body }]);
    } catch (error) {
      if (error.kind !== "refused" && error.kind !== "long") throw error;
    }
  }

  enterSends(source.field, false, begin);
  const pick = (example) => {
    source.field.value = example;
    begin();
  };
  const root = el("div", { class: "columns" },
    el("div", { class: "column" }, choice.root, targets,
      form({ class: "ask" }, begin, source.root, el("div", { class: "buttons" }, place.start, place.stop, place.note)),
      examples(TEXTS[key], pick), place.box.root, out, picture, code.root),
    el("div", { class: "column aside" }, settings.root));
  return { root, end: place.end };
}
