import assert from "node:assert/strict";
import { test } from "node:test";
import { edgePath, layout } from "../../../coditect/api/dashboard/workflow/layout.js";
import { shortName } from "../../../coditect/api/dashboard/src/format.js";
import { grouped } from "../../../coditect/api/dashboard/workflow/groups.js";

const node = (name, ...after) => ({ name, after, state: "completed", kind: "task", capability: "text.count" });

function wide(count, width) {
  const nodes = [];
  for (let at = 0; at < count; at += 1) {
    const layer = Math.floor(at / width);
    const before = layer === 0 ? [] : [`n${(layer - 1) * width + ((at * 7) % width)}`, `n${(layer - 1) * width + ((at * 3) % width)}`];
    nodes.push(node(`n${at}`, ...new Set(before)));
  }
  return nodes;
}

test("a node stands behind all that it waits for", () => {
  const { places } = layout([node("d", "b", "c"), node("a"), node("b", "a"), node("c", "b")]);
  assert.deepEqual(["a", "b", "c", "d"].map((name) => places.get(name).layer), [0, 1, 2, 3]);
});

test("no two nodes share a place, and all stand within the picture", () => {
  const { places, width, height } = layout(wide(1_000, 25));
  assert.equal(new Set([...places.values()].map(({ x, y }) => `${x},${y}`)).size, 1_000);
  for (const { x, y } of places.values()) assert.ok(x >= 0 && y >= 0 && x < width && y < height);
});

test("the sweeps untangle what crosses", () => {
  const { places } = layout([node("a"), node("b"), node("x", "b"), node("y", "a")]);
  assert.equal(places.get("x").row, places.get("b").row);
  assert.equal(places.get("y").row, places.get("a").row);
});

test("an edge to a node that is not shown is left out", () => {
  assert.deepEqual(layout([node("a", "gone")]).edges, []);
});

test("a cycle, which no workflow has, ends all the same", () => {
  assert.equal(layout([node("a", "b"), node("b", "a")]).places.size, 2);
});

test("an edge goes from the right side of one node to the left side of the other", () => {
  assert.match(edgePath({ x: 0, y: 0 }, { x: 240, y: 60 }), /^M176 22C.* 240 82$/);
});

test("a small graph is drawn node by node", () => {
  const drawn = grouped([node("a"), node("b", "a")]);
  assert.deepEqual(drawn.map((one) => [one.name, one.members.length]), [["a", 1], ["b", 1]]);
});

test("a map is one node, which counts its elements", () => {
  const rows = [node("list"), ...Array.from({ length: 9 }, (_, at) => node(`review[${at}]`, "list")), node("review", "list"), node("sum", "review")];
  rows[3] = { ...rows[3], state: "failed" };
  const drawn = grouped(rows);
  const review = drawn.find((one) => one.name === "review");
  assert.equal(review.members.length, 9);
  assert.equal(review.label, "9 × review");
  assert.equal(review.state, "failed");
  assert.deepEqual(review.counts, { completed: 8, failed: 1 });
  assert.deepEqual(drawn.find((one) => one.name === "sum").after, ["review"]);
});

test("ten thousand nodes become a picture of a hundred, and none is lost", () => {
  const drawn = grouped(wide(10_000, 100));
  assert.ok(drawn.length <= 2_000);
  assert.equal(drawn.reduce((sum, one) => sum + one.members.length, 0), 10_000);
  const { layers } = layout(drawn);
  assert.equal(layers.length, 100);
});

test("elements of an open map stand between the map and what it waited for", () => {
  const row = (name, ...after) => ({ name, after, state: "completed", kind: "task", capability: "a.b" });
  const nodes = grouped([row("first"), row("many", "first"), row("many[0]"), row("many[1]"), row("last", "many")], { open: new Set(["many"]) });
  const after = Object.fromEntries(nodes.map((node) => [node.name, node.after]));

  assert.deepEqual(after, { first: [], many: ["many[0]", "many[1]"], "many[0]": ["first"], "many[1]": ["first"], last: ["many"] });
});

test("a long name keeps its beginning and its end", () => {
  assert.equal(shortName("review_module_billing", 13), "review…illing");
  assert.equal(shortName("review", 6), "review");
  for (const letters of [1, 2, 3, 14]) assert.equal(shortName("review_module_billing", letters).length, letters);
});
