/** A conversation: replies come as they are written, can be stopped, and written anew. */
import { stream } from "./api.js";
import { controls } from "./controls.js";
import { announce, el, newId } from "./dom.js";
import { codeBox, enterSends, examples, form, modelChoice, textField, textOf, workplace } from "./parts.js";
import { number, say, sayAttribute, saying, told } from "./words.js";

const PATH = "/v1/chat/completions";

export function chat(models) {
  const choice = modelChoice(models);
  const system = textField("system", 2);
  const systemNote = newId("note");
  system.field.setAttribute("aria-describedby", systemNote);
  const settings = controls(["temperature", "top_p", "max_tokens", "seed"], Math.min(256, Math.floor((models[0].max_model_len ?? 512) / 2)));
  const code = codeBox();
  const turns = el("ol", { class: "turns" });
  const begin = saying("p", { class: "note begin" }, "begin");
  const log = sayAttribute(el("div", { class: "log", role: "log" }, begin, turns), "aria-label", "conversation");
  const input = textField("message", 2);
  const hint = newId("note");
  input.field.setAttribute("aria-describedby", hint);
  const place = workplace("send");
  const again = saying("button", { type: "button", hidden: true, click: () => anew() }, "again");
  const clear = saying("button", { type: "button", hidden: true, click: () => forget() }, "clear");
  let said = []; // {role, text, node}, user and assistant in turn

  function turn(role, text) {
    const body = el("div", { class: "said", dir: "auto" }, text);
    const node = el("li", { class: `turn ${role}` }, role === "user" ? saying("span", { class: "who" }, "you") : el("span", { class: "who" }, choice.model().id), body);
    turns.append(node);
    return { role, text, node, body };
  }

  function note(one, key, values) {
    one.node.append(saying("p", { class: "note" }, key, values));
  }

  function changed() {
    begin.hidden = said.length > 0;
    again.hidden = clear.hidden = said.length === 0 || place.busy();
  }

  /** What the model is told: turns that it answered with something, and the last. */
  function messages() {
    const answered = (n) => said[n]?.role === "assistant" && said[n].text !== "";
    const list = said.filter(({ role }, n) => (role === "user" ? n === said.length - 1 || answered(n + 1) : answered(n)));
    const first = textOf(system.field).trim();
    const before = first === "" ? [] : [{ role: "system", content: first }];
    return [...before, ...list.map(({ role, text }) => ({ role, content: text }))];
  }

  function send() {
    const text = textOf(input.field).trim();
    if (place.busy()) return;
    if (text === "") return place.box.remark("blank");
    input.field.value = "";
    said.push(turn("user", text));
    reply();
  }

  /** Another reply, or the first where none came. The one before is kept until something is there in its place. */
  function anew() {
    if (place.busy()) return;
    const before = said.at(-1).role === "assistant" ? said.pop() : null;
    if (before !== null) before.node.hidden = true;
    said.at(-1).node.querySelector(".note")?.remove();
    reply(before);
  }

  function forget() {
    for (const { node } of said) node.remove();
    said = [];
    place.box.clear();
    code.root.hidden = true;
    changed();
    announce(told("cleared"));
    input.field.focus();
  }

  let following = false;

  /** Keep the end of what is being written in sight, at most once for each picture that is drawn. */
  function follow(node) {
    if (following) return;
    following = true;
    requestAnimationFrame(() => {
      following = false;
      node.scrollIntoView({ block: "nearest" });
    });
  }

  async function reply(before = null) {
    const question = said.at(-1);
    const body = { model: choice.model().id, messages: messages(), ...settings.values(), stream: true };
    const one = turn("assistant", "");
    said.push(one);
    log.setAttribute("aria-busy", "true"); // what it says is read out when it is whole
    let whole = false;
    const working = place.run(async (signal, begun) => {
      code.done([{ path: PATH, body }]);
      for await (const chunk of stream(PATH, body, signal)) {
        if (chunk.zhixing?.turns_cut) note(one, "cut", { n: number(chunk.zhixing.turns_cut) });
        const [part] = chunk.choices;
        if (part?.delta.content) {
          begun();
          one.text += part.delta.content;
          one.body.append(part.delta.content);
          follow(one.node);
        }
        if (part?.finish_reason === "length") note(one, "full_length");
      }
      whole = true;
    }, () => (said.includes(question) ? anew() : send()));
    changed();
    await working;
    if (!whole && one.text === "") {
      said.pop().node.remove();
      nothingCame(question, before);
    } else {
      before?.node.remove();
      if (!whole) note(one, place.box.root.hasChildNodes() ? "broken" : "stopped");
      else if (one.text === "") note(one, "empty");
    }
    one.body.normalize();
    log.removeAttribute("aria-busy");
    changed();
  }

  /** The reply before stands again; without one the message is the person's again, or stands where they write the next. */
  function nothingCame(question, before) {
    if (before !== null) {
      before.node.hidden = false;
      said.push(before);
    } else if (input.field.value === "") {
      said.pop().node.remove();
      input.field.value = question.text;
    } else {
      note(question, "unanswered");
    }
  }

  enterSends(input.field, true, send);
  const pick = (text) => {
    input.field.value = text;
    send();
  };
  const root = el("div", { class: "columns" },
    el("div", { class: "column" },
      choice.root, log, place.box.root,
      form({ class: "ask" }, send, input.root, saying("p", { class: "note", id: hint }, "send_hint"),
        el("div", { class: "buttons" }, place.start, place.stop, again, clear, place.note)),
      examples([["en", "Where have you been?"], ["zh-Hans", "你好，你会做什么？"]], pick),
      code.root),
    el("div", { class: "column aside" }, el("div", {}, system.root, saying("p", { class: "note", id: systemNote }, "system_note")), settings.root));
  return { root, end: place.end };
}
