"""The schemas of tools: objects whose references stay valid, and inputs that look required if they are."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError

from coditect.integrations.mcp.serving import CapabilityTool
from coditect.integrations.tools import admits, as_object
from coditect.model.capability import CapabilitySpec

LIST = {"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"type": "integer"}]}}
PAIR = {"type": "array", "prefixItems": [{"type": "integer"}, {"$ref": "#/prefixItems/0"}], "minItems": 2}
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "n": {"type": "integer"}}, "required": ["n"]}
ROOT = {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}}
OLD = {
    "$ref": "#/definitions/Node",
    "definitions": {"Node": {"type": "array", "items": {"$ref": "#/definitions/Node"}}},
}
ABOVE = {"$ref": "#/$defs/Leaf", "$defs": {"Leaf": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/Many"}]},
         "Many": {"type": "array", "items": {"$ref": "#"}}}}  # fmt: skip
ANCHORED = {"type": "array", "items": {"$ref": "#n"}, "$defs": {"a/b": {"$anchor": "n", "type": "integer"}}}
DYNAMIC = {"$dynamicAnchor": "node", "type": "array", "items": {"$dynamicRef": "#node"}}
RECURSIVE = {"$schema": "https://json-schema.org/draft/2019-09/schema", "$recursiveAnchor": True, "type": "array",
             "items": {"$recursiveRef": "#"}}  # fmt: skip
TUPLE = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "additionalItems": {"type": "null"},
         "items": [{"type": "integer"}, {"type": "string"}]}  # fmt: skip
TO_TUPLE = {"type": "array", "items": [{"type": "integer"}, {"$ref": "#/items/0"}]}
TO_REST = {"type": "array", "items": [{"$ref": "#/additionalItems"}, {}], "additionalItems": {"type": "integer"}}
TO_NAMED_TUPLE = {"type": "array", "items": {"$ref": "#/definitions/items/items/1"},
                  "definitions": {"items": {"items": [{"type": "string"}, {"type": "integer"}]}}}  # fmt: skip
TO_ANCHOR_IN_TUPLE = {"type": "array", "items": [{"id": "#n", "type": "integer"}, {"$ref": "#n"}]}
TO_PROPERTY = {"type": "array", "items": {"$ref": "#/definitions/A/properties/items"},
               "definitions": {"A": {"properties": {"items": {"type": "integer"}}}}}  # fmt: skip
NAMED = {"$id": "https://example.org/list", "type": "array", "items": {"$ref": "https://example.org/list#"}}


@pytest.mark.parametrize(
    ("schema", "fits", "fails"),
    [
        (LIST, [1, [2, [3]]], [1, ["x"]]),
        (PAIR, [1, 2], [1, "x"]),
        (ROOT, {"n": 1, "next": {"n": 2}}, {"n": 1, "next": {"n": "x"}}),
        (OLD, [[], [[]]], [[1]]),
        (ABOVE, [1, [2]], [1, ["x"]]),
        (NAMED, [[], [[]]], [[1]]),
        (ANCHORED, [1], ["x"]),
        (DYNAMIC, [[], [[]]], [[1]]),
        (RECURSIVE, [[], [[]]], [[1]]),
        (TUPLE, [1, "x", None], [1, "x", 2]),
        (TO_TUPLE, [1, 2], [1, "x"]),
        (TO_REST, [1, "x", 2], ["x"]),
        (TO_NAMED_TUPLE, [1], ["x"]),
        (TO_ANCHOR_IN_TUPLE, [1, 2], [1, "x"]),
        (TO_PROPERTY, [1], ["x"]),
    ],
)
def test_a_schema_keeps_its_references_where_it_is_moved(schema: dict[str, Any], fits: Any, fails: Any) -> None:
    moved = as_object(schema, "input")
    assert (moved["type"], moved["required"]) == ("object", ["input"])
    check = Draft202012Validator(moved)
    check.validate({"input": fits})
    with pytest.raises(ValidationError):
        check.validate({"input": fails})


def test_schemas_with_one_identifier_stay_apart() -> None:
    number = {"$id": "https://example.org/s", "type": "object", "properties": {"a": {"$ref": "https://example.org/s#n"}},
              "$defs": {"n": {"$anchor": "n", "type": "integer"}}}  # fmt: skip
    assert as_object(number, "input") == {
        "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#/$defs/none"}}},
        {"properties": {"a": {"$ref": "https://example.org/elsewhere"}}},
        {"properties": {"a": {"$id": "inner", "type": "integer"}}},
        {"properties": {"a": {"id": "inner", "type": "integer"}}},
        {"properties": {"a": {"type": "array", "prefixItems": [{"type": "integer"}], "items": False}}},
        {"patternProperties": {"(?P<x>a)": {}}},
        {"$async": True},
    ],
)
def test_output_schema_that_a_client_of_draft_7_cannot_read_is_left_out(schema: dict[str, Any]) -> None:
    spec = CapabilitySpec("text.count", output_schema={"type": "object"} | schema)
    assert CapabilityTool("text_count", spec).described.output_schema is None


@pytest.mark.parametrize("schema", [ROOT, ANCHORED, DYNAMIC, RECURSIVE, NAMED, {"type": "object", "id": "old"}])
def test_output_schema_is_read_alike_by_clients_of_draft_7(schema: dict[str, Any]) -> None:
    described = CapabilityTool("text_count", CapabilitySpec("text.count", output_schema=schema)).described
    assert described.output_schema is not None
    assert "id" not in described.output_schema
    Draft7Validator.check_schema(described.output_schema)


def test_values_that_break_their_schema_are_answers_and_patterns_are_left_out_of_it() -> None:
    tool = CapabilityTool("text_count", CapabilitySpec("text.count", output_schema={"type": "object"}))
    assert tool.answer({"a": 1}).structured_content == {"a": 1}
    assert tool.answer([1]).structured_content == {"result": [1]}

    schema = {"type": "object", "properties": {"pattern": {"type": "string", "pattern": "(?i)a"}}}
    described = CapabilityTool("text_count", CapabilitySpec("text.count", "", schema, schema)).described
    assert described.output_schema == {"type": "object", "properties": {"pattern": {"type": "string"}}}
    assert described.input_schema == schema


def test_values_and_names_that_look_like_references_stay_as_they_are() -> None:
    schema = {"type": "array", "items": {"properties": {"$ref": {"const": {"$ref": "#"}}}}}
    assert as_object(schema, "input")["properties"]["input"] == schema


@pytest.mark.parametrize(
    ("schema", "null", "text"),
    [
        ({}, True, True),
        ({"title": "Anything"}, True, True),
        ({"type": "string"}, False, True),
        ({"type": ["integer", "null"]}, True, False),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, True, False),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, False, False),
        ({"enum": [1, 2]}, False, False),
        ({"enum": [None, "a"]}, True, True),
        ({"const": 1}, False, False),
        ({"$ref": "#/$defs/N", "$defs": {"N": {"type": "object"}}}, False, False),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"enum": ["a"]}}}, False, True),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, False, True),
        ({"$ref": "#"}, True, True),
        ({"$ref": "https://example.org/elsewhere"}, True, True),
        ({"type": "integer", "anyOf": [{"$ref": "#"}] * 3}, False, False),
        ({"anyOf": [{"$ref": "#/$defs/N"}, {"$ref": "#/$defs/N"}], "$defs": {"N": {"type": "integer"}}}, False, False),
        ({"type": 5}, True, True),
        ({"enum": 3, "type": "string"}, False, True),
        ({"anyOf": None, "oneOf": [], "allOf": 7}, True, True),
    ],
)
def test_which_schemas_admit_null_or_a_text(schema: dict[str, Any], null: bool, text: bool) -> None:
    assert (admits(schema, None), admits(schema, "a")) == (null, text)


def test_every_part_of_a_schema_is_looked_at_once() -> None:
    """One by one, 200 parts on each of 20 levels would be looked at 200 ** 20 times."""
    parts = {f"{row}": {"anyOf": [{"$ref": f"#/$defs/{row + 1}"}] * 200} for row in range(20)}
    schema = {"$ref": "#/$defs/0", "$defs": {**parts, "20": {"type": "integer"}}}

    assert as_object(schema, "input")["required"] == ["input"]
