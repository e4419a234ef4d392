import assert from "node:assert/strict";
import { test } from "node:test";
import { listen, parseEvents } from "../../../coditect/api/dashboard/src/live.js";
import { span, short, until } from "../../../coditect/api/dashboard/src/format.js";
import { timeline } from "../../../coditect/api/dashboard/workflow/timeline.js";
import { waits } from "../../../coditect/api/dashboard/pages/locks.js";

test("events are split where the stream says, and the rest waits for more", () => {
  const { events, rest } = parseEvents('retry: 2000\n\nid: e-1\ndata: {"type":\ndata: "task.started"}\n\nevent: gap\nid: e-2\ndata: {}\n\nid: e-');
  assert.deepEqual(events, [
    { id: "e-1", type: "message", data: '{"type":\n"task.started"}' }, { id: "e-2", type: "gap", data: "{}" },
  ]);
  assert.equal(rest, "id: e-");
});

test("a ping without data still says how far the stream has come", () => {
  assert.deepEqual(parseEvents("id: e-7\n: ping\n\n").events, [{ id: "e-7", type: "message", data: "" }]);
});

test("durations are told in two units at most", () => {
  assert.deepEqual([0, 420, 4_200, 42_000, 90_000, 3_600_000, 90_061_000].map(span), ["0 ms", "420 ms", "4.2 s", "42 s", "1 min 30 s", "1 h", "1 d 1 h"]);
  assert.equal(until(5_000, 0), "in 5.0 s");
  assert.equal(short("01890a5d-ac96-774b-bcce-b302099a8057"), "0189…9a8057");
});

test("a line of the timeline has the wait and each attempt", () => {
  const nodes = [
    { name: "late", state: "working", ready_at_ms: 50, finished_at_ms: null },
    { name: "early", state: "completed", ready_at_ms: 0, started_at_ms: 10, finished_at_ms: 40 },
    { name: "never", state: "blocked" },
  ];
  const attempts = [
    { node: "early", started_at_ms: 10, finished_at_ms: 20, status: "failed", agent: "a" },
    { node: "early", started_at_ms: 25, finished_at_ms: 40, status: "completed", agent: "b" },
    { node: "late", started_at_ms: 60, finished_at_ms: null, status: "working", agent: "a" },
  ];
  const { lines, begin, end } = timeline(nodes, attempts, 100);
  assert.deepEqual([begin, end], [0, 100]);
  assert.deepEqual(lines.map((line) => [line.name, line.bars.map((bar) => [bar.kind, bar.from, bar.to])]), [
    ["early", [["wait", 0, 10], ["failed", 10, 20], ["completed", 25, 40]]],
    ["late", [["wait", 50, 60], ["working", 60, 100]]],
  ]);
});

test("the graph of waits leads from who waits through the lock to who holds it", () => {
  const row = (resource, state, agent) => ({ resource, state, agent, task: "" });
  const nodes = waits([row("repo:x", "held", "a"), row("repo:x", "waiting", "b"), row("idle", "held", "c")]);
  assert.deepEqual(nodes.map((one) => [one.name, one.after]), [
    ["resource repo:x", ["owner b"]], ["owner a", ["resource repo:x"]], ["owner b", []],
  ]);
});

test("listeners that want the same share one stream, which ends with the last of them", async () => {
  const asked = [];
  let stream;
  globalThis.sessionStorage = { getItem: () => null };
  globalThis.fetch = async (address, { signal }) => {
    asked.push([address, signal]);
    return { ok: true, body: new ReadableStream({ start: (controller) => (stream = controller) }) };
  };
  const heard = [];
  const told = [];
  const first = listen({ task: "t" }, (one) => heard.push(["first", one.type]), (now) => told.push(["first", now]));
  await new Promise((resolve) => setTimeout(resolve));
  const second = listen({ task: "t" }, (one) => heard.push(["second", one.type]), (now) => told.push(["second", now]));
  stream.enqueue(new TextEncoder().encode('id: 1\ndata: {"type":"task.started"}\n\n'));
  while (heard.length < 2) await new Promise((resolve) => setTimeout(resolve));
  first();
  const open = !asked[0][1].aborted;
  second();

  assert.deepEqual(heard, [["first", "task.started"], ["second", "task.started"]]);
  assert.deepEqual(told, [["first", "live"], ["second", "live"]]);
  assert.equal(asked.length, 1);
  assert.deepEqual([open, asked[0][1].aborted], [true, true]);
});
