// The HTTP API as the pages use it: a call gives the decoded JSON, or else the text, or raises a Problem with the API's
// own sentence.

import { parse, stringify } from "./json.js";

const KEY = "coditect.key";
const listeners = new Set();

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
    for (const told of listeners) told(value);
  },
  changed(told) {
    listeners.add(told);
    return () => listeners.delete(told);
  },
};

// A link may bring the key in the part behind #, which no server and no log sees; it leaves the address at once.
function keyOfAddress() {
  const [page, search] = location.hash.split("?");
  const fields = new URLSearchParams(search);
  if (!fields.has("key")) return false;
  key.set(fields.get("key"));
  fields.delete("key");
  history.replaceState(null, "", `${page}${fields.size ? `?${fields}` : ""}`);
  return true;
}

if (globalThis.location) { // the tests of the parts without DOM have none
  keyOfAddress();
  addEventListener("hashchange", () => keyOfAddress() && location.reload());
}

export class Problem extends Error {
  // An RFC 9457 problem: the message is the API's sentence, `status` is HTTP's (0 when no answer came).
  constructor(status, { title = "The API refused this", detail = "", fix = "", facts = {}, mistakes = [] }) {
    super(detail || title);
    this.status = status;
    this.fix = fix;
    this.facts = facts;
    this.mistakes = mistakes;
  }
}

export function headers(more = {}) {
  const known = key.get();
  return known ? { Authorization: `Bearer ${known}`, ...more } : more;
}

export function query(fields) {
  const given = Object.entries(fields).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  const text = new URLSearchParams(given.flatMap(([name, value]) => [value].flat().map((one) => [name, one])));
  return given.length ? `?${text}` : "";
}

export async function call(method, path, body, { signal, more = {} } = {}) {
  const sent = headers({ Accept: "application/json", ...more });
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, signal, body: body === undefined ? undefined : stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The API does not answer", fix: "coditect api", facts: { reason: error.message } });
  }
  const text = await answer.text();
  const document = decoded(text, answer);
  if (!answer.ok) throw new Problem(answer.status, document ?? { title: answer.statusText });
  return document;
}

function decoded(text, answer) {
  if (!text) return null;
  try {
    return parse(text);
  } catch {
    return answer.ok ? text : { title: answer.statusText || "The answer is no JSON", facts: { answer: text.slice(0, 300) } };
  }
}

export const get = (path, options) => call("GET", path, undefined, options);
export const post = (path, body = {}) => call("POST", path, body);
export const put = (path) => call("PUT", path);

// Follows the cursors of a list until `most` rows are there.
export async function rows(path, { most = 20_000, signal } = {}) {
  const found = [];
  let next = path;
  while (next && found.length < most) {
    const page = await get(next, { signal });
    found.push(...items(page));
    next = page?.next ? following(path, page.next) : null;
  }
  return found;
}

export const items = (page) => (Array.isArray(page) ? page : (page?.items ?? []));

const following = (path, cursor) => `${path}${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(cursor)}`;

export const segment = encodeURIComponent;
