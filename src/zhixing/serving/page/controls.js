/** How a model writes: controls that say what their value does. Those that nobody moved are as the model has them. */
import { el, newId } from "./dom.js";
import { number, say, saying, unsay } from "./words.js";

/** {root, values()}: values are fields of a request. `names` are some of temperature, top_p, max_tokens, seed, num_beams. */
export function controls(names, most = 100) {
  const all = { temperature, top_p: topP, max_tokens: () => maxTokens(most), seed, num_beams: beams };
  const made = names.map((name) => [name, all[name]()]);
  const reset = saying("button", { type: "button", class: "quiet", click: () => made.forEach(([, control]) => control.reset()) }, "reset");
  const root = el("details", { class: "settings" }, saying("summary", {}, "settings"), ...made.map(([, control]) => control.root), reset);
  root.open = matchMedia("(min-width: 821px)").matches;
  const values = () => Object.fromEntries(made.map(([name, control]) => [name, control.value()]).filter(([, value]) => value !== undefined));
  return { root, values };
}

function slider(key, { min, max, step, start, digits, means }) {
  const [id, noteId] = [newId(key), newId("note")];
  const input = el("input", { id, type: "range", min, max, step, value: start, "aria-describedby": noteId, input: () => moved() });
  const output = el("output", { for: id });
  const note = el("p", { class: "note", id: noteId });
  let own = true;
  const reset = () => {
    own = true;
    input.value = start;
    say(output, "own");
    say(note, `${key}_own`);
  };
  const moved = () => {
    own = false;
    unsay(output);
    output.textContent = number(input.valueAsNumber, digits);
    say(note, ...means(input.valueAsNumber));
  };
  reset();
  const root = el("div", { class: "control" }, saying("label", { for: id }, key), output, input, note);
  return { root, reset, value: () => (own ? undefined : input.valueAsNumber) };
}

function temperature() {
  const means = (value) => [value === 0 ? "temperature_0" : value < 0.95 ? "temperature_low" : value <= 1.05 ? "temperature_1" : "temperature_high"];
  return slider("temperature", { min: 0, max: 2, step: 0.05, start: 1, digits: 2, means });
}

function topP() {
  const means = (value) => (value === 1 ? ["top_p_1"] : ["top_p_less", { n: number(value * 100) }]);
  return slider("top_p", { min: 0.05, max: 1, step: 0.05, start: 1, digits: 2, means });
}

function beams() {
  const means = (value) => (value === 1 ? ["beams_1"] : ["beams_more", { n: value }]);
  return slider("beams", { min: 1, max: 8, step: 1, start: 4, digits: 0, means });
}

function maxTokens(most) {
  const [id, noteId] = [newId("tokens"), newId("note")];
  const input = el("input", { id, type: "number", min: 1, max: 65536, step: 1, value: most, inputmode: "numeric", "aria-describedby": noteId });
  const note = saying("p", { class: "note", id: noteId }, "max_tokens_note");
  const value = () => (Number.isInteger(input.valueAsNumber) ? Math.min(65536, Math.max(1, input.valueAsNumber)) : most);
  const root = el("div", { class: "control" }, saying("label", { for: id }, "max_tokens"), input, note);
  return { root, value, reset: () => (input.value = most) };
}

function seed() {
  const [id, noteId] = [newId("seed"), newId("note")];
  const note = el("p", { class: "note", id: noteId });
  const input = el("input", { id, type: "number", step: 1, inputmode: "numeric", "aria-describedby": noteId, input: () => told() });
  const value = () => (Number.isSafeInteger(input.valueAsNumber) ? input.valueAsNumber : undefined);
  const told = () => say(note, value() === undefined ? "seed_none" : "seed_set");
  const reset = () => {
    input.value = "";
    told();
  };
  reset();
  return { root: el("div", { class: "control" }, saying("label", { for: id }, "seed"), input, note), value, reset };
}
