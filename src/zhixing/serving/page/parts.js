/** What the applications share: the choice of a model, examples, troubles, code, and one piece of work at a time. */
import { Trouble } from "./api.js";
import { curl, python } from "./code.js";
import { announce, el, newId } from "./dom.js";
import { number, say, sayAttribute, saying, told, unsay } from "./words.js";

const PATIENCE = 8000; // milliseconds until waiting is remarked upon

/** The choice of a model. {root, model(), onChange} */
export function modelChoice(models, onChange = () => {}) {
  const id = newId("model");
  const select = el("select", { id, change: () => changed() }, ...models.map((model) => el("option", { value: model.id }, model.id)));
  const note = el("span", { class: "note" });
  const model = () => models.find((each) => each.id === select.value);
  const changed = () => {
    if (model().max_model_len === null) unsay(note);
    else say(note, "context", { n: number(model().max_model_len) });
    onChange(model());
  };
  changed();
  return { root: el("div", { class: "model" }, saying("label", { for: id }, "model"), select, note), model };
}

/** A text field with its name. */
export function textField(key, rows) {
  const id = newId("field");
  const field = el("textarea", { id, rows, dir: "auto", spellcheck: "false" });
  return { root: el("div", { class: "field" }, saying("label", { for: id }, key), field), field };
}

/** What was written in a field; half a character (a lone surrogate) is no text. */
export const textOf = (field) => field.value.toWellFormed?.() ?? field.value;

/** Examples to click, each in its language. */
export function examples(texts, pick) {
  const chips = texts.map(([lang, text]) => el("button", { type: "button", class: "chip", lang, click: () => pick(text) }, text));
  return el("div", { class: "examples", role: "group" }, saying("span", { class: "note" }, "examples"), ...chips);
}

/** Where troubles are told: what happened, what to do, and a button to try again where that can help. */
export function troubleBox() {
  const root = el("div", { class: "troubles", role: "alert" });
  let shown = "";
  const clear = () => root.replaceChildren();
  const show = (error, again = null) => {
    const known = error instanceof Trouble ? error : new Trouble("page_failed");
    if (known !== error) console.error(error);
    const now = `${known.kind} ${known.said}`;
    if (root.hasChildNodes() && now === shown) return; // neither read out again nor taken from under the keyboard
    shown = now;
    const [what, mend] = worded(known);
    const box = el("div", { class: "trouble" }, saying("strong", {}, what, known.values));
    if (known.kind === "refused") box.append(" ", el("q", { lang: "en", dir: "auto" }, known.said));
    box.append(saying("p", {}, mend, known.values));
    if (again !== null && ["lost", "full", "slow", "stopping", "failed"].includes(known.kind)) {
      box.append(saying("button", { type: "button", click: () => (clear(), again()) }, "retry"));
    }
    root.replaceChildren(box);
    if (known.kind === "wrong_key") document.dispatchEvent(new CustomEvent("key-needed"));
  };
  const remark = (key) => {
    shown = "";
    root.replaceChildren(el("div", { class: "trouble" }, saying("strong", {}, key)));
  };
  return { root, show, clear, remark };
}

function worded(trouble) {
  if (trouble.kind === "long" && trouble.values.a === undefined) return ["long_unknown", "long_mend"];
  if (trouble.kind === "failed" && !trouble.values.id) return ["failed", "failed_plain"];
  return [trouble.kind, `${trouble.kind}_mend`];
}

/** What was just done, as code: hidden until something was. {root, done(requests)} */
export function codeBox() {
  let requests = [];
  const pre = el("pre", { tabindex: "0", dir: "ltr" });
  sayAttribute(pre, "aria-label", "code");
  const note = el("span", { class: "note", role: "status" });
  const shown = el("div", { class: "shown", hidden: true }, pre);
  const button = (key, write) => saying("button", {
    type: "button", class: "quiet",
    click: async () => {
      pre.textContent = write(requests);
      shown.hidden = false;
      try {
        await navigator.clipboard.writeText(pre.textContent);
        say(note, "copied");
      } catch {
        getSelection().selectAllChildren(pre);
        say(note, "not_copied");
      }
    },
  }, key);
  const root = el("div", { class: "code", hidden: true }, button("curl", curl), button("python", python), note, shown);
  const done = (list) => {
    requests = list;
    root.hidden = false;
    shown.hidden = true;
    unsay(note);
  };
  return { root, done };
}

/**
 * One piece of work at a time: a button that begins it, one that stops it, what is said meanwhile, and its troubles.
 *
 * `run(work, again)`: `work(signal)` does it; what it throws is told, with a button that does it `again`.
 */
export function workplace(key) {
  const start = saying("button", { type: "submit", class: "main" }, key);
  const stop = saying("button", { type: "button", hidden: true, click: () => control?.abort() }, "stop");
  const note = el("span", { class: "note" });
  const box = troubleBox();
  let control = null;

  const run = async (work, again) => {
    if (control !== null) return;
    control = new AbortController();
    box.clear();
    start.disabled = true;
    stop.hidden = false;
    say(note, "working");
    const late = setTimeout(() => say(note, "waiting"), PATIENCE);
    try {
      await work(control.signal, () => clearTimeout(late));
      announce(told("done"));
    } catch (error) {
      if (error.name === "AbortError") announce(told("stopped"));
      else box.show(error, again);
    } finally {
      clearTimeout(late);
      control = null;
      start.disabled = false;
      if (document.activeElement === stop) start.focus();
      stop.hidden = true;
      unsay(note);
    }
  };
  return { start, stop, note, box, run, busy: () => control !== null, end: () => control?.abort() };
}

/** A form that does not leave the page. */
export function form(attributes, submit, ...children) {
  return el("form", { ...attributes, novalidate: true, submit: (event) => (event.preventDefault(), submit()) }, ...children);
}

/** Ctrl and Enter (or Enter alone) send the form; not while a Chinese word is being put together. */
export function enterSends(field, alone, send) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing || event.keyCode === 229 || event.shiftKey) return;
    if (!alone && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    send();
  });
}

/** A bar from 0 to `share`; the number stands beside it in words. */
export function bar(share, kind = "f") {
  const inner = el("span", { class: kind });
  inner.style.inlineSize = `${Math.min(100, Math.max(0, share * 100)).toFixed(1)}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, inner);
}
