/** Going on with a text: each piece tells how likely it was, and what could have come in its place. */
import { stream } from "./api.js";
import { controls } from "./controls.js";
import { el } from "./dom.js";
import { bar, codeBox, enterSends, examples, form, modelChoice, textField, textOf, workplace } from "./parts.js";
import { percent, say, sayAttribute, saying, told } from "./words.js";

const PATH = "/v1/completions";
const TOP = 5;

export function write(models) {
  const choice = modelChoice(models);
  const settings = controls(["temperature", "top_p", "max_tokens", "seed"], 100);
  const code = codeBox();
  const prompt = textField("prompt", 4);
  const place = workplace("go_on");
  const given = el("span", { class: "given" });
  const pieces = el("span", { class: "pieces", role: "group", keydown: (event) => moved(event) });
  sayAttribute(pieces, "aria-label", "written");
  const text = el("div", { class: "text", dir: "auto" }, given, pieces);
  const ended = el("p", { class: "note" });
  const out = el("section", { class: "out", hidden: true }, saying("h2", {}, "written"), text, ended, saying("p", { class: "note" }, "pieces_note"));
  const beside = el("section", { class: "beside", hidden: true });
  let start = ""; // the text that is gone on with
  let made = []; // {text, parts: [{token, logprob, top}], node}

  function begin(from = textOf(prompt.field)) {
    if (place.busy()) return;
    if (from === "") return place.box.remark("blank");
    start = from;
    made = [];
    given.textContent = from;
    pieces.replaceChildren();
    ended.textContent = "";
    beside.hidden = true;
    out.hidden = false;
    const body = { model: choice.model().id, prompt: from, max_tokens: 100, ...settings.values(), logprobs: TOP, stream: true };
    pieces.setAttribute("aria-busy", "true");
    place.run(async (signal, begun) => {
      code.done([{ path: PATH, body }]);
      let parts = [];
      for await (const { choices: [part] } of stream(PATH, body, signal)) {
        if (part === undefined) continue;
        begun();
        parts.push(...partsOf(part.logprobs));
        if (part.text !== "") {
          const apart = parts.every(({ token }) => token !== "") && parts.map(({ token }) => token).join("") === part.text;
          if (apart) parts.forEach((each) => add(each.token, [each]));
          else add(part.text, parts); // characters of several pieces, or pieces of several characters
          parts = [];
        }
        if (part.finish_reason === "length") say(ended, "full_length");
      }
      if (made.length === 0) say(ended, "empty");
    }, () => begin(from)).finally(() => pieces.removeAttribute("aria-busy"));
  }

  function partsOf(logprobs) {
    const top = logprobs?.top_logprobs;
    return (logprobs?.tokens ?? []).map((token, n) => ({
      token, logprob: logprobs.token_logprobs[n], top: Object.entries(top?.[n] ?? {}).sort((a, b) => b[1] - a[1]),
    }));
  }

  function add(shown, parts) {
    const likely = Math.exp(parts.reduce((sum, { logprob }) => sum + logprob, 0));
    const level = likely >= 0.5 ? 0 : likely >= 0.2 ? 1 : likely >= 0.05 ? 2 : likely >= 0.01 ? 3 : 4;
    const piece = { text: shown, parts };
    const show = () => shownBeside(piece, likely);
    const pointed = () => pieces.contains(document.activeElement) || show(); // one that was clicked stays, on the way to its alternatives too
    piece.node = el("span", {
      class: `piece p${level}`, role: "button", tabindex: made.length === 0 ? "0" : "-1", mouseenter: pointed, focus: show,
      click: () => piece.node.focus(),
    }, controlsSeen(shown));
    sayAttribute(piece.node, "aria-label", "piece", { piece: controlsSeen(shown), p: percent(likely) });
    made.push(piece);
    pieces.append(piece.node);
  }

  /** Arrow keys go from piece to piece; the tab key leaves them. */
  function moved(event) {
    const now = made.findIndex(({ node }) => node === document.activeElement);
    const next = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: made.length - 1 }[event.key];
    if (now < 0 || next === undefined) return;
    event.preventDefault();
    const { node } = made[Math.min(made.length - 1, Math.max(0, next))];
    made[now].node.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  }

  function shownBeside(piece, likely) {
    for (const each of made) each.node.classList.toggle("chosen", each === piece);
    const rows = piece.parts.flatMap(({ token, logprob, top }) => {
      const all = top.some(([other]) => other === token) ? top : [...top, [token, logprob]];
      return all.map(([other, value]) => row(piece, other, Math.exp(value), other === token));
    });
    const heads = ["token", "probability"].map((key) => saying("th", { scope: "col", class: key === "token" ? null : "number" }, key));
    beside.replaceChildren(
      saying("h2", {}, "could"),
      el("p", { class: "chosen-piece" }, el("b", { dir: "auto" }, visible(piece.text)), ` ${percent(likely)}`),
      el("table", {}, saying("caption", { class: "unseen" }, "could_table"),
        el("thead", {}, el("tr", {}, ...heads, el("td", {}))), el("tbody", {}, ...rows)));
    beside.hidden = false;
  }

  function row(piece, token, likely, taken) {
    const single = piece.parts.length === 1 && !token.startsWith("bytes:");
    const name = taken || !single || token === ""
      ? el("span", { dir: "auto" }, visible(token))
      : sayAttribute(el("button", { type: "button", class: "quiet", dir: "auto", click: () => instead(piece, token) }, visible(token)), "aria-label", "take", { piece: token });
    const cell = el("th", { scope: "row" }, name);
    if (taken) cell.append(" ", saying("small", {}, "taken"));
    return el("tr", {}, cell, el("td", { class: "number" }, percent(likely)), el("td", { class: "bars" }, bar(likely)));
  }

  /** Go on from there with another piece. */
  function instead(piece, token) {
    if (place.busy()) return;
    const before = made.slice(0, made.indexOf(piece)).map((each) => each.text).join("");
    begin(start + before + token);
  }

  enterSends(prompt.field, false, () => begin());
  const pick = (example) => {
    prompt.field.value = example;
    begin();
  };
  const root = el("div", { class: "columns" },
    el("div", { class: "column" }, choice.root,
      form({ class: "ask" }, () => begin(), prompt.root, el("div", { class: "buttons" }, place.start, place.stop, place.note)),
      examples([["en", "It was a bright morning, and"], ["zh-Hans", "人工智能的发展趋势："]], pick),
      place.box.root, out, beside, code.root),
    el("div", { class: "column aside" }, settings.root));
  return { root, end: place.end };
}

/** Control characters that can be seen, but for ends of lines and tabs. */
function controlsSeen(text) {
  return text.replace(/[\x00-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))).replaceAll("\x7f", "\u2421");
}

/** Blanks that can be seen too. */
function visible(token) {
  return controlsSeen(token).replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}
