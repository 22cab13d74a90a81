/** Where each head of a model looks: small pictures of all heads to choose from, and one of them large. */
import { ask } from "./api.js";
import { matrix } from "./alignment.js";
import { el } from "./dom.js";
import { codeBox, enterSends, examples, form, modelChoice, textField, textOf, workplace } from "./parts.js";
import { number, sayAttribute, saying } from "./words.js";

const PATH = "/v1/attention";
const WRITERS = { // what a model that reads apart wrote is asked for first: path, body, text of the answer
  translation: ["/v1/translate", (asked) => asked, ({ data }) => data[0].text],
  summarization: ["/v1/summarize", (asked) => asked, ({ data }) => data[0].text],
  dialogue: ["/v1/chat/completions", ({ model, input }) => ({ model, messages: [{ role: "user", content: input }] }), ({ choices }) => choices[0].message.content],
};
const KINDS = { // heading, and what is said beside the large picture
  bidirectional: ["both_ways", "both_ways_note"], causal: ["before", "before_note"], cross: ["across", "across_note"],
};
const KEYS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

export function attention(models) {
  const target = el("select", { id: "attention-target" });
  const targets = el("div", { class: "model" }, saying("label", { for: target.id }, "target"), target);
  const choice = modelChoice(models, ({ target_languages: languages }) => {
    targets.hidden = !languages?.length;
    target.replaceChildren(...(languages ?? []).map((code) => el("option", { value: code }, code)));
  });
  const code = codeBox();
  const source = textField("to_attend", 3);
  const place = workplace("attend");
  const writing = el("div", { class: "text", dir: "auto", hidden: true }); // of a model that writes another text than it reads
  const out = el("section", { class: "out heads", hidden: true });
  let shown = null; // {kind, layer, head} that was looked at last: the next text is shown there too

  function begin() {
    const input = textOf(source.field);
    if (place.busy()) return;
    if (input.trim() === "") return place.box.remark("blank");
    const { id: model, task, reads_apart: apart, attention_layers: layers } = choice.model();
    const asked = { model, input };
    if (!targets.hidden) asked.target_language = target.value;
    place.run(async (signal) => {
      const requests = [];
      const body = { ...asked };
      if (apart) {
        const [path, made, textOfAnswer] = WRITERS[task];
        requests.push({ path, body: made(asked) });
        code.done(requests);
        body.output = textOfAnswer(await ask(path, made(asked), signal));
        [writing.hidden, out.hidden] = [true, false];
        if (body.output === "") return out.replaceChildren(saying("p", { class: "note" }, "empty"));
      }
      const maps = await allMaps(body, layers, requests, signal);
      writing.hidden = body.output === undefined;
      writing.textContent = body.output ?? "";
      out.replaceChildren(pictures(maps));
      out.hidden = false;
    }, begin);
  }

  /** All layers at once; where that is too much, one after another. */
  async function allMaps(body, layers, before, signal) {
    code.done([...before, { path: PATH, body }]);
    try {
      return (await ask(PATH, body, signal)).maps;
    } catch (error) {
      if (error.kind !== "wide") throw error;
    }
    const found = new Map();
    for (let layer = 0; layer < layers; layer += 1) {
      const { maps } = await ask(PATH, { ...body, layer }, signal);
      if (layer === 0) code.done([...before, { path: PATH, body: { ...body, layer } }]);
      for (const map of maps) {
        if (found.has(map.kind)) found.get(map.kind).weights.push(...map.weights);
        else found.set(map.kind, map);
      }
    }
    return [...found.values()];
  }

  function pictures(maps) {
    const large = el("div", { class: "large" });
    const groups = maps.map((map) => group(map, (layer, head) => enlarge(map, layer, head)));
    const start = groups.find(({ map }) => map.kind === shown?.kind) ?? groups.at(-1);
    const { layer, head } = shown ?? { layer: 0, head: 0 };

    function enlarge(map, layer, head) {
      shown = { kind: map.kind, layer, head };
      for (const each of groups) each.mark(each.map === map ? layer : -1, head);
      const values = { layer: number(layer + 1), head: number(head + 1) };
      large.replaceChildren(saying("h2", {}, "head", values), saying("p", { class: "note" }, KINDS[map.kind][1]),
        matrix(map.columns, map.rows, map.weights[layer][head], { caption: "attention_table", values, note: "attention_note" }));
    }

    enlarge(start.map, Math.min(layer, start.map.weights.length - 1), Math.min(head, start.map.weights[0].length - 1));
    return el("div", { class: "columns even" }, el("div", { class: "column" }, ...groups.map(({ root }) => root)), large);
  }

  /** The heads of one kind: a row is a layer. One stop of the tab key, and arrows from there. */
  function group(map, choose) {
    const buttons = map.weights.map((heads, layer) => heads.map((weights, head) => {
      const button = el("button", { type: "button", role: "radio", class: "head", "aria-checked": "false", tabindex: "-1", click: () => choose(layer, head) }, picture(weights));
      return sayAttribute(button, "aria-label", "head", { layer: number(layer + 1), head: number(head + 1) });
    }));
    const grid = el("div", { class: "grid", role: "radiogroup", keydown: (event) => keydown(event) });
    grid.style.setProperty("--heads", Math.max(...buttons.map((row) => row.length)));
    const mark = (chosenLayer, chosenHead) => buttons.forEach((row, layer) => row.forEach((button, head) => {
      const chosen = layer === chosenLayer && head === chosenHead;
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen || (chosenLayer < 0 && layer === 0 && head === 0) ? 0 : -1;
    }));
    const keydown = (event) => {
      const move = KEYS[event.key];
      const layer = buttons.findIndex((row) => row.includes(document.activeElement));
      if (move === undefined || layer < 0) return;
      event.preventDefault();
      const head = buttons[layer].indexOf(document.activeElement) + move[1];
      const next = buttons[layer + move[0]]?.[Math.min(head, buttons[layer + move[0]].length - 1)];
      if (next === undefined) return;
      next.focus();
      next.click();
    };
    sayAttribute(grid, "aria-label", KINDS[map.kind][0]);
    buttons.forEach((row, layer) => grid.append(el("div", { class: "layer" }, saying("span", { class: "note" }, "layer", { n: number(layer + 1) }), ...row)));
    return { map, mark, root: el("div", {}, saying("h2", {}, KINDS[map.kind][0]), grid) };
  }

  enterSends(source.field, false, begin);
  const pick = (example) => {
    source.field.value = example;
    begin();
  };
  const root = el("div", { class: "column" },
    choice.root, targets,
    form({ class: "ask" }, begin, source.root, el("div", { class: "buttons" }, place.start, place.stop, place.note)),
    examples([["en", "The cat sat down because it was tired."], ["zh-Hans", "小猫坐下了，因为它很累。"]], pick),
    place.box.root, writing, out, code.root);
  return { root, end: place.end };
}

/** weights[t][s] as a picture without words: a pixel each, as opaque as the root of its share of the largest, so that a small one shows. */
function picture(weights) {
  const canvas = el("canvas", { width: weights[0].length, height: weights.length, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const [red, green, blue] = getComputedStyle(document.documentElement).getPropertyValue("--for").trim().split(" ").map(Number);
  const most = Math.max(...weights.map((row) => Math.max(...row)), Number.MIN_VALUE);
  const image = context.createImageData(canvas.width, canvas.height);
  weights.forEach((row, t) => row.forEach((weight, s) => image.data.set([red, green, blue, Math.round(255 * Math.sqrt(weight / most))], 4 * (t * canvas.width + s))));
  context.putImageData(image, 0, 0);
  return canvas;
}
