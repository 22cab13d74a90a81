/** Requests to the server, streams of events, and what can go wrong with either. */

const KEPT = "zhixing.key";
const KINDS = {
  invalid_api_key: "wrong_key", queue_full: "full", queue_timeout: "full", too_many_requests: "full",
  context_length_exceeded: "long", too_many_weights: "wide", model_not_found: "gone", body_too_large: "large", timeout: "slow",
  request_timeout: "slow", draining: "stopping", unavailable: "stopping", internal_error: "failed",
};
const BY_STATUS = { 401: "wrong_key", 413: "large", 429: "full", 500: "failed", 502: "lost", 503: "stopping", 504: "slow" };

let secret = "";
try {
  secret = sessionStorage.getItem(KEPT) ?? "";
} catch {
  // it is held by this page only
}

export const hasKey = () => secret !== "";

export function useKey(key) {
  secret = key;
  try {
    if (key === "") sessionStorage.removeItem(KEPT);
    else sessionStorage.setItem(KEPT, key);
  } catch {
    // as above
  }
}

/** Where the API is, without a slash behind it. */
export function base() {
  return new URL(".", document.baseURI).href.replace(/\/$/, "");
}

/** What went wrong: `kind` is a key of words.js, which has `${kind}_mend` too. */
export class Trouble extends Error {
  constructor(kind, values = {}, message = "") {
    super(message || kind);
    this.kind = kind;
    this.values = values;
    this.said = message; // the server's own words
  }
}

function trouble(error, status, headers) {
  const kind = KINDS[error?.code] ?? BY_STATUS[status] ?? "refused";
  const message = typeof error?.message === "string" ? error.message : `HTTP ${status}`;
  const values = { id: headers.get("x-request-id") ?? "", n: headers.get("retry-after") ?? "1" };
  const numbers = /has ([\d,]+) tokens, the model reads ([\d,]+)/.exec(message);
  if (numbers !== null) [values.a, values.b] = [numbers[1], numbers[2]];
  return new Trouble(kind, values, message);
}

async function sent(path, body, signal) {
  const headers = secret === "" ? {} : { authorization: `Bearer ${secret}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(base() + path, {
      method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store", credentials: "omit",
      referrerPolicy: "no-referrer", redirect: "error", body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble("lost");
  }
  if (response.ok) return response;
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // a proxy before the server answers in its own way
  }
  throw trouble(told, response.status, response.headers);
}

/** The answer to a GET, or to a POST where there is a body. Trouble, or an AbortError. */
export async function ask(path, body, signal) {
  const response = await sent(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble("lost");
  }
}

/** The events of a stream, one by one. Trouble where it breaks off, or an AbortError. */
export async function* stream(path, body, signal) {
  const response = await sent(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Trouble("lost");
      rest += value;
      for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
        const data = rest.slice(0, end).replace(/^data: ?/, "");
        rest = rest.slice(end + 2);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw trouble(event.error, response.status, response.headers);
        yield event;
      }
    }
  } catch (error) {
    throw error instanceof Trouble || error.name === "AbortError" ? error : new Trouble("lost");
  } finally {
    reader.cancel().catch(() => {});
  }
}
