import assert from "node:assert/strict";
import { test } from "node:test";
import { About } from "../../../coditect/api/dashboard/workflow/node.js";

// The texts and the values of what a component returned, in their order.
function told(part) {
  if (Array.isArray(part)) return part.flatMap(told);
  if (part === null || typeof part !== "object") return typeof part === "string" ? [part] : [];
  return "value" in part.props ? [part.props.value] : told(part.props.children);
}

test("an approver sees the labels, the input, and the results of the nodes before the question", () => {
  const about = { labels: { team: "blue" }, input: { euro: 7 }, results: { count: 5 }, workflow_input: "a text" };
  assert.deepEqual(told(About({ about })), [
    "What is approved", "Labels", about.labels, "Input", about.input, "Results of the nodes before it", about.results,
    "Input of the workflow", about.workflow_input,
  ]);
});

test("values that there are not have no heading", () => {
  assert.deepEqual(told(About({ about: { labels: {}, input: null, results: { count: 0 } } })), [
    "What is approved", "Results of the nodes before it", { count: 0 },
  ]);
  assert.equal(About({ about: { labels: {} } }), null);
  assert.equal(About({ about: undefined }), null);
});
