import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { draftOf, fieldOf, fromValue, valueOf } from "../../../coditect/api/dashboard/form/schema.js";
import { parse, stringify } from "../../../coditect/api/dashboard/src/json.js";

const DASHBOARD = new URL("../../../coditect/api/dashboard/", import.meta.url);

test("a text of JSON is written as it was read, to the last digit", () => {
  for (const text of [
    "9007199254740993", "-9007199254740993", "18446744073709551615", "[9007199254740991,-9223372036854775808]",
    '{"id":1234567890123456789,"in":[{"a":9007199254740993}],"small":1}', '"9007199254740993"',
    '{"text: 9007199254740993,":"a \\"9007199254740993\\" b","9007199254740993":9007199254740993}',
    "0.1234567890123456", "1e+300", "null", '"1e999"',
  ]) {
    assert.equal(stringify(parse(text)), text);
  }
});

test("a value of small numbers is plain, and one beyond 2^53 is a BigInt", () => {
  assert.deepEqual(parse('{"a":[1,2.5,9007199254740991]}'), { a: [1, 2.5, 9007199254740991] });
  assert.equal(parse("9007199254740993"), 9007199254740993n);
});

test("indents are kept, and nothing is written for nothing", () => {
  assert.equal(stringify({ id: 9007199254740993n }, 2), '{\n  "id": 9007199254740993\n}');
  assert.equal(stringify(undefined), undefined);
});

test("a number that JavaScript would read as infinite is refused, and errors keep their place", () => {
  assert.throws(() => parse("[1e999]"), /1e999 is too large/);
  assert.throws(() => parse('{"a": 9007199254740993,}'), SyntaxError);
});

const FORM = fieldOf(parse(`{"type": "object", "required": ["id"], "properties": {
  "id": {"type": "integer", "minimum": 0, "maximum": 18446744073709551615}, "share": {"type": "number"},
  "level": {"enum": [9007199254740993, 9007199254740995]}, "start": {"type": "integer", "default": 9007199254740993},
  "loose": {}}}`));

test("a form keeps every digit, from the default or the example to what it sends", () => {
  const draft = { ...draftOf(FORM), id: "9007199254740993", level: "1", loose: '{"n": 9007199254740993}' };
  const sent = '{"id":9007199254740993,"level":9007199254740995,"start":9007199254740993,"loose":{"n":9007199254740993}}';

  assert.equal(stringify(valueOf(FORM, draft)), sent);
  assert.equal(stringify(valueOf(FORM, fromValue(FORM, parse(sent)))), sent);
});

test("a number that cannot be sent as it was typed is a mistake", () => {
  const mistakesOf = (fields) => {
    const mistakes = [];
    valueOf(FORM, { ...draftOf(FORM), id: "1", ...fields }, mistakes);
    return mistakes.map((one) => `${one.at} ${one.sentence}`);
  };

  assert.deepEqual(mistakesOf({ id: "9007199254740993.0" }), ["id is rounded: write all its digits"]);
  assert.deepEqual(mistakesOf({ share: "1e999" }), ["share is no number"]);
  assert.deepEqual(mistakesOf({ id: "18446744073709551616" }), ["id is more than 18446744073709551615"]);
  assert.deepEqual(mistakesOf({ id: "18446744073709551615" }), []);
});

test("no page reads or shows JSON otherwise", () => {
  const own = readdirSync(DASHBOARD, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".js"));
  const others = own.filter((name) => /JSON\.parse|JSON\.stringify|\.json\(\)/.test(readFileSync(new URL(name, DASHBOARD), "utf8")));

  // what the other three read and write is their own: the filters of a stream, and the tasks of this tab
  assert.deepEqual(others.sort(), ["pages/tasks.js", "src/json.js", "src/live.js", "src/resource.js"]);
});
