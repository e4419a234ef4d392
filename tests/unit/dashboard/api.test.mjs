import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.sessionStorage = { getItem: () => null };
const { call, Problem } = await import("../../../coditect/api/dashboard/src/api.js");

const answering = (text, status) => { globalThis.fetch = async () => new Response(text, { status }); };

test("an answer is decoded JSON, or else its text", async () => {
  answering('{"a": 1}', 200);
  assert.deepEqual(await call("GET", "/v1/agents"), { a: 1 });
  answering("plain words", 200);
  assert.equal(await call("GET", "/v1/plain"), "plain words");
});

test("a refusal that is no JSON is a problem with its text", async () => {
  answering("<html>", 502);
  await assert.rejects(call("GET", "/v1/agents"), (problem) => problem instanceof Problem && problem.facts.answer === "<html>");
});
