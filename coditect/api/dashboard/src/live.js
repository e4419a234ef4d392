// Live events of the API by server-sent events, read by fetch, since an EventSource cannot send an API key.
import { headers, query } from "./api.js";
import { parse } from "./json.js";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 10_000;

// Splits a stream of text into its events; what is incomplete stays in `rest`.
export function parseEvents(text) {
  const blocks = text.split("\n\n");
  const rest = blocks.pop();
  return { rest, events: blocks.map(parseEvent).filter(Boolean) };
}

function parseEvent(block) {
  const event = { id: undefined, type: "message", data: [] };
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    const field = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (field === "data") event.data.push(value);
    else if (field === "event") event.type = value;
    else if (field === "id") event.id = value;
  }
  return event.id === undefined && event.data.length === 0 ? null : { ...event, data: event.data.join("\n") };
}

// Calls `heard` with each event that `wanted` selects (`kind`, `workflow`, ... as the API's query has them), until the
// returned function is called. An event of the type `gap` says that others may be missing. `state` hears "live" while
// the stream is open and "polling" while it is not. Listeners that want the same share one stream of the tab: a browser
// has six connections to a server, and an open stream keeps one.
export function listen(wanted, heard, state) {
  const name = JSON.stringify(wanted);
  const stream = streams.get(name) ?? begun(name, wanted);
  const listener = { heard, state };
  stream.listeners.add(listener);
  if (stream.now) state(stream.now);
  return () => {
    stream.listeners.delete(listener);
    if (stream.listeners.size) return;
    stream.ended.abort();
    if (streams.get(name) === stream) streams.delete(name);
  };
}

const streams = new Map();

function begun(name, wanted) {
  const stream = { listeners: new Set(), ended: new AbortController(), now: "" };
  streams.set(name, stream);
  const each = (tell) => [...stream.listeners].forEach(tell);
  const state = (now) => ((stream.now = now), each((one) => one.state(now)));
  follow(wanted, (event) => each((one) => one.heard(event)), state, stream.ended.signal);
  return stream;
}

async function follow(wanted, heard, state, signal) {
  let last;
  let wait = FIRST_RETRY_MS;
  while (!signal.aborted) {
    try {
      await read(wanted, last, signal, {
        opened: () => (state("live"), (wait = FIRST_RETRY_MS)),
        event(one) {
          last = one.id ?? last;
          if (one.data === "") return;
          if (one.type === "message") heard(parse(one.data));
          else if (one.type === "gap") heard({ type: "gap", ...parse(one.data) });
        },
      });
    } catch (error) {
      if (signal.aborted) return;
      console.debug("The stream of events ended:", error.message);
    }
    if (signal.aborted) return;
    state("polling");
    await pause(wait, signal);
    wait = Math.min(wait * 2, LONGEST_RETRY_MS);
  }
}

async function read(wanted, last, signal, on) {
  const sent = headers({ Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) });
  const answer = await fetch(`/v1/events${query(wanted)}`, { headers: sent, signal });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  on.opened();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parsed = parseEvents(rest + value);
    rest = parsed.rest;
    parsed.events.forEach(on.event);
  }
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
