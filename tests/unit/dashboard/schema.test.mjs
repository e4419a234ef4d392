import assert from "node:assert/strict";
import { test } from "node:test";
import { draftOf, fieldOf, fromValue, valueOf } from "../../../coditect/api/dashboard/form/schema.js";

const REVIEW = {
  type: "object",
  required: ["path", "strict", "tags", "options"],
  properties: {
    path: { type: "string", minLength: 1, description: "A file." },
    lines: { type: "integer", default: 20, minimum: 1, maximum: 100 },
    share: { type: "number" },
    strict: { type: "boolean" },
    level: { enum: ["low", "high"] },
    tags: { type: "array", items: { type: "string" } },
    options: { $ref: "#/$defs/Options" },
    note: { anyOf: [{ type: "string" }, { type: "null" }], default: null },
    loose: {},
  },
  $defs: { Options: { type: "object", properties: { depth: { type: "integer" }, inner: { $ref: "#/$defs/Options" } } } },
};

const field = fieldOf(REVIEW);
const kinds = (of) => Object.fromEntries(of.fields.map((one) => [one.name, one.kind]));

test("each type has its field, and what has none is asked for as JSON", () => {
  assert.deepEqual(kinds(field), {
    path: "text", lines: "number", share: "number", strict: "boolean", level: "choice", tags: "array", options: "object",
    note: "text", loose: "json",
  });
});

test("a draft begins with the defaults, and what is left empty is left out", () => {
  const draft = { ...draftOf(field), path: "a.py" };
  assert.deepEqual(valueOf(field, draft), { path: "a.py", lines: 20, strict: false, tags: [], options: {} });
});

test("what is typed becomes values of their types", () => {
  const draft = {
    ...draftOf(field), path: "a.py", lines: "3", share: "0.5", strict: true, level: "1", tags: ["x", "y"],
    options: { depth: "2", inner: draftOf(field.fields[6]).inner }, note: "hm", loose: '{"any": [1]}',
  };
  assert.deepEqual(valueOf(field, draft), {
    path: "a.py", lines: 3, share: 0.5, strict: true, level: "high", tags: ["x", "y"], options: { depth: 2 }, note: "hm",
    loose: { any: [1] },
  });
});

test("every mistake is told with its place", () => {
  const mistakes = [];
  const draft = { ...draftOf(field), path: "", lines: "1.5", share: "much", options: { depth: "two", inner: draftOf(field.fields[6]).inner }, loose: "{" };
  valueOf(field, draft, mistakes);
  assert.deepEqual(mistakes.map((one) => one.at), ["path", "lines", "share", "options.depth", "loose"]);
});

test("bounds are checked", () => {
  const mistakes = [];
  valueOf(field, { ...draftOf(field), path: "a", lines: "101" }, mistakes);
  assert.deepEqual(mistakes, [{ at: "lines", sentence: "is more than 100" }]);
});

test("a value comes back from the form as it went in", () => {
  const value = { path: "a.py", lines: 3, share: 0.5, strict: true, level: "low", tags: ["x"], options: { depth: 1 }, note: "n", loose: [1] };
  assert.deepEqual(valueOf(field, fromValue(field, value)), value);
});

test("a schema that refers to itself ends as JSON", () => {
  let deep = field.fields[6];
  while (deep.kind === "object") deep = deep.fields[1];
  assert.equal(deep.kind, "json");
});

test("the empty schema takes any JSON", () => {
  const any = fieldOf({});
  assert.equal(any.kind, "json");
  assert.deepEqual(valueOf(any, "[1, 2]"), [1, 2]);
});

test("a text that does not fit its pattern is a mistake, and a pattern that no browser reads is none", () => {
  const of = (pattern) => fieldOf({ type: "string", pattern });
  const mistakes = [];
  assert.equal(valueOf(of("^[a-z]+$"), "A1", mistakes, "name"), undefined);
  assert.deepEqual(mistakes, [{ at: "name", sentence: "does not fit the pattern ^[a-z]+$" }]);
  assert.equal(valueOf(of("^[a-z]+$"), "ab"), "ab");
  assert.equal(valueOf(of("(?P<name>x)"), "y"), "y");
  assert.equal(valueOf({ ...of("^x$"), required: false }, ""), undefined);
});

test("a tuple has a field for each of its elements, and one without an end is asked for as JSON", () => {
  const prefixItems = [{ type: "string" }, { type: "integer", title: "Port" }];
  const pair = fieldOf({ type: "array", prefixItems, minItems: 2, maxItems: 2 });
  assert.deepEqual(pair.fields.map(({ kind, title }) => [kind, title]), [["text", "1"], ["number", "Port"]]);
  assert.deepEqual(valueOf(pair, ["host", "80"]), ["host", 80]);
  assert.deepEqual(fromValue(pair, ["host", 80]), ["host", "80"]);
  const mistakes = [];
  valueOf(pair, ["host", "many"], mistakes, "address");
  assert.deepEqual(mistakes, [{ at: "address[1]", sentence: "is no number" }]);
  const optional = { ...pair, required: false };
  assert.equal(valueOf(optional, draftOf(optional)), undefined);
  assert.equal(fieldOf({ type: "array", prefixItems, items: { type: "string" }, minItems: 2 }).kind, "json");
});
