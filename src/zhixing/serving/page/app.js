/** The page: asks the server for its models, and has a tab for each thing that they can do. */
import { attention } from "./attention.js";
import { ask, hasKey, Trouble, useKey } from "./api.js";
import { chat } from "./chat.js";
import { classify } from "./classify.js";
import { compare } from "./compare.js";
import { announce, el } from "./dom.js";
import { troubleBox } from "./parts.js";
import { summarize, translate } from "./rewrite.js";
import { trainings } from "./trainings.js";
import { number, say, saying, startLanguage, told } from "./words.js";
import { write } from "./write.js";

const APPLICATIONS = [ // name, task of the models, what makes it; a function says of a model whether it is able
  ["chat", "dialogue", chat],
  ["write", "generation", write],
  ["translate", "translation", translate],
  ["summarize", "summarization", summarize],
  ["classify", "classification", classify],
  ["compare", "embedding", compare],
  ["attention", (model) => model.attention_layers > 0, attention],
];

const [about, tabs, work, keyForm, keyField, forget] = ["about", "tabs", "work", "key", "key-field", "key-forget"].map((id) => document.getElementById(id));
const box = troubleBox();
let shown = []; // {name, tab, panel, seen, end}

async function start() {
  box.clear();
  for (const { end } of shown) end();
  shown = [];
  tabs.replaceChildren();
  work.replaceChildren();
  tabs.hidden = true;
  say(about, "loading");
  try {
    const { data } = await ask("/v1/models");
    const watching = await ask("/v1/trainings").then((found) => found.watching === true, () => true); // its tab says what is wrong
    build(data, watching);
    if (hasKey()) announce(told("key_kept"));
    keyForm.hidden = !hasKey();
  } catch (error) {
    about.textContent = "";
    delete about.dataset.say;
    if (error instanceof Trouble && error.kind === "wrong_key" && !hasKey()) say(about, "key_needed");
    else box.show(error, start);
    if (error instanceof Trouble && error.kind === "wrong_key") needKey();
  }
  forget.hidden = !hasKey();
}

function needKey() {
  keyForm.hidden = false;
  keyField.focus();
}

function build(models, watching) {
  if (models.length === 0 && !watching) {
    say(about, "none");
    work.append(saying("p", { class: "note" }, "none_mend"));
    return;
  }
  if (models.length === 0) say(about, "only_trainings");
  else say(about, "about", { n: number(models.length) });
  for (const [name, task, make] of APPLICATIONS) {
    const able = models.filter(typeof task === "function" ? task : (model) => model.task === task);
    if (able.length === 0) continue;
    add(name, make(able));
  }
  if (watching) add("trainings", trainings());
  tabs.append(...shown.map(({ tab }) => tab));
  work.append(...shown.map(({ panel }) => panel));
  tabs.hidden = false;
  fromAddress();
}

function add(name, { root, end, seen = () => {} }) {
  const tab = saying("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, click: () => choose(name) }, name);
  const panel = el("section", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}` }, root);
  shown.push({ name, tab, panel, seen, end });
}

function choose(name) {
  for (const each of shown) {
    const chosen = each.name === name;
    each.panel.hidden = !chosen;
    each.tab.setAttribute("aria-selected", String(chosen));
    each.tab.tabIndex = chosen ? 0 : -1;
    if (chosen) each.seen();
  }
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
}

function fromAddress() {
  const wanted = location.hash.slice(1);
  if (shown.length > 0) choose(shown.some(({ name }) => name === wanted) ? wanted : shown[0].name);
}

tabs.addEventListener("keydown", (event) => {
  const now = shown.findIndex(({ tab }) => tab === document.activeElement);
  const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: shown.length - 1 }[event.key];
  if (now < 0 || next === undefined) return;
  event.preventDefault();
  const { name, tab } = shown[(next + shown.length) % shown.length];
  choose(name);
  tab.focus();
});

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const key = keyField.value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) { // what no header can hold is no key
    box.clear();
    box.show(new Trouble("wrong_key"));
    return;
  }
  useKey(key);
  keyField.value = "";
  start();
});
forget.addEventListener("click", () => {
  useKey("");
  start();
});
document.addEventListener("key-needed", needKey);
addEventListener("hashchange", () => {
  if (location.hash !== "#work") fromAddress();
});

document.getElementById("trouble").replaceWith(box.root);
startLanguage();
start();
