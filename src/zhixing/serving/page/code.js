/** What was just done on the page, as code: for curl, and for Python. The key is never in it, only its name. */
import { base, hasKey } from "./api.js";

const KEY = "ZHIXING_API_KEY";
// OpenAI's routes, how their client calls them, and what of the answer is shown, whole and streamed
const CALLS = {
  "/v1/completions": ["completions", "answer.choices[0].text", "chunk.choices[0].text"],
  "/v1/chat/completions": ["chat.completions", "answer.choices[0].message.content", 'chunk.choices[0].delta.content or ""'],
  "/v1/embeddings": ["embeddings", "[entry.embedding for entry in answer.data]", ""],
};

/** `done` is a list of requests, {path, body}; without a body something is only looked up. */
export function curl(done) {
  return done.map(({ path, body }) => {
    const lines = [`curl ${body?.stream ? "-N " : ""}${shell(base() + path)}`];
    if (hasKey()) lines.push(`-H "Authorization: Bearer $${KEY}"`);
    if (body !== undefined) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
    return lines.join(" \\\n  ");
  }).join("\n\n");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const shell = (word) => (/^[\w.:\/-]+$/.test(word) ? word : quoted(word)); // what a shell takes as it is needs no quotes

export function python(done) {
  return done.every(({ path }) => path in CALLS) ? byClient(done) : byHand(done);
}

function byClient(done) {
  const lines = hasKey() ? ["import os", ""] : [];
  const key = hasKey() ? `os.environ["${KEY}"]` : '"none"';
  lines.push("from openai import OpenAI", "", `client = OpenAI(base_url=${literal(`${base()}/v1`)}, api_key=${key})`);
  for (const { path, body } of done) {
    const [call, whole, part] = CALLS[path];
    lines.push(`answer = client.${call}.create(`);
    for (const [name, value] of Object.entries(body)) lines.push(`    ${name}=${literal(value, 1)},`);
    lines.push(")");
    if (body.stream) lines.push("for chunk in answer:", `    print(${part}, end="", flush=True)`);
    else lines.push(`print(${whole})`);
  }
  return lines.join("\n");
}

function byHand(done) {
  const lines = ["import json", ...(hasKey() ? ["import os"] : []), "from urllib.request import Request, urlopen", ""];
  lines.push("headers = {", '    "Content-Type": "application/json",');
  if (hasKey()) lines.push(`    "Authorization": "Bearer " + os.environ["${KEY}"],`);
  lines.push("}");
  for (const { path, body } of done) {
    if (body !== undefined) lines.push(`asked = ${literal(body)}`);
    const sent = body === undefined ? "headers=headers" : "json.dumps(asked).encode(), headers";
    lines.push(`request = Request(${literal(base() + path)}, ${sent})`, "print(json.load(urlopen(request)))");
  }
  return lines.join("\n");
}

/** A JSON value as Python writes it. */
function literal(value, depth = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = "    ".repeat(depth + 1);
  const parts = Array.isArray(value)
    ? value.map((each) => literal(each, depth + 1))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, depth + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const short = open + parts.join(", ") + close;
  if (short.length < 90 && !short.includes("\n")) return short;
  return `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${"    ".repeat(depth)}${close}`;
}
