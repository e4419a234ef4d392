import assert from "node:assert/strict";
import { test } from "node:test";
import { fieldOf } from "../../../coditect/api/dashboard/form/schema.js";
import { curl, groups, isStream, lacking, matching, requestOf } from "../../../coditect/api/dashboard/src/openapi.js";

const NAMED = { name: "task_id", in: "path", required: true, schema: { type: "string" } };
const DOCUMENT = {
  paths: {
    "/v1/tasks": {
      get: { tags: ["tasks"], operationId: "list_tasks", description: "List tasks.\n\nThe newest first.", responses: { 200: { description: "OK" } } },
      post: {
        tags: ["tasks"], operationId: "submit", description: "Submit a task.",
        requestBody: { required: true, content: { "application/json": { schema: { $ref: "#/components/schemas/Task" } } } },
        responses: { 202: { description: "Taken", content: { "application/json": { schema: { $ref: "#/components/schemas/Task" } } } } },
      },
    },
    "/v1/tasks/{task_id}/wait": { get: { tags: ["tasks"], operationId: "wait", parameters: [
      NAMED, { name: "tag", in: "query", schema: { type: "array", items: { type: "string" } } }, { name: "If-Match", in: "header", schema: {} },
    ], responses: {} } },
    "/v1/events": { get: { tags: ["events"], responses: { 200: { description: "", content: { "text/event-stream": {} } } } } },
  },
  components: { schemas: { Task: { type: "object", properties: { capability: { type: "string" } } } } },
};
const ALL = groups(DOCUMENT);
const [[, [list, submit, wait]], [, [events]]] = ALL;

test("operations stand in their groups, with what they say first and what follows", () => {
  assert.deepEqual(ALL.map(([tag, of]) => [tag, of.map((one) => `${one.method} ${one.path}`)]), [
    ["tasks", ["GET /v1/tasks", "POST /v1/tasks", "GET /v1/tasks/{task_id}/wait"]], ["events", ["GET /v1/events"]],
  ]);
  assert.deepEqual([list.first, list.rest], ["List tasks.", ["The newest first."]]);
  assert.deepEqual([list, events].map(isStream), [false, true]);
});

test("a schema finds what it refers to in the document", () => {
  assert.deepEqual(fieldOf(submit.body).fields.map((one) => one.name), ["capability"]);
  assert.deepEqual(fieldOf(submit.responses[0].schema).fields.map((one) => one.name), ["capability"]);
});

test("a filter keeps the operations that have all its words", () => {
  assert.deepEqual(matching(ALL, "post TASKS").map(([tag, of]) => [tag, of.map((one) => one.id)]), [["tasks", ["post-submit"]]]);
  assert.deepEqual(matching(ALL, "tasks nothing"), []);
});

test("a request has its values in path, query and headers, and says what it lacks", () => {
  const values = { task_id: "a/b c", tag: "x\ny&z\n", "If-Match": "7" };
  const request = requestOf(wait, values, undefined);
  assert.equal(request.path, "/v1/tasks/a%2Fb%20c/wait?tag=x&tag=y%26z");
  assert.deepEqual(request.headers, { "If-Match": "7" });
  assert.deepEqual([lacking(wait, values), lacking(wait, {})], [[], ["task_id"]]);
});

test("the command for a stream shows what comes at once", () => {
  assert.equal(curl(requestOf(events, {}, undefined), "http://host", false), "curl -sN 'http://host/v1/events'");
});

test("the command quotes what the shell would read, and never has the key itself", () => {
  const command = curl(requestOf(submit, {}, { capability: "it's" }), "http://host", true);
  assert.equal(command, `curl -s -X POST 'http://host/v1/tasks' -H "Authorization: Bearer $CODITECT_API_KEY" -H 'content-type: application/json' -d '{"capability":"it'\\''s"}'`);
});
