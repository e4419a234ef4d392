"""Checks by the JSON Schemas and patterns of strangers take bounded time, and say what does not fit."""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from coditect.errors import InputError, InvalidTask, SetupError
from coditect.integrations import json_schema
from coditect.integrations.json_schema import LEAST_STEPS, SchemaCheck
from coditect.integrations.pattern import matcher
from coditect.wire.json import MAX_JSON_LEVELS

EVIL, LONG = "^(a+)+$", "a" * 26 + "!"
LATEST = "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": EVIL}, LONG),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "pattern": EVIL}, LONG),
        ({"allOf": [{"$schema": LATEST, "pattern": EVIL}]}, LONG),
        ({"propertyNames": {"pattern": EVIL}}, {LONG: 1}),
        ({"patternProperties": {EVIL: True}, "additionalProperties": False}, {LONG: 1}),
    ],
)
def test_pattern_that_would_backtrack_is_matched_at_once(schema: dict[str, Any], value: Any) -> None:
    check, since = SchemaCheck(schema), time.process_time()

    with pytest.raises(InvalidTask, match="does not fit"):
        check.check(value)

    assert time.process_time() - since < 0.5


def test_properties_that_a_pattern_names_are_checked_by_its_schema() -> None:
    check = SchemaCheck({"patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": {"type": "string"}})

    check.check({"n1": 1, "other": "text"})
    for unfit in ({"n1": "text"}, {"other": 1}):
        with pytest.raises(InvalidTask, match="does not fit"):
            check.check(unfit)


@pytest.mark.parametrize("pattern", ["^(?!b)", r"^(a)\1$"])
def test_pattern_that_needs_backtracking_is_left_out(pattern: str) -> None:
    SchemaCheck({"type": "string", "pattern": pattern, "minLength": 1}).check("b")
    SchemaCheck({"patternProperties": {pattern: False}, "additionalProperties": False}).check({"b": 1})

    with pytest.raises(InvalidTask, match="does not fit"):
        SchemaCheck({"type": "string", "pattern": pattern, "minLength": 2}).check("b")


@pytest.mark.parametrize("pattern", ["(", "[", "(" * 5_000])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(SetupError, match="no JSON Schema"):
        SchemaCheck({"pattern": pattern})


def test_what_cannot_be_bounded_is_refused_with_what_to_do() -> None:
    with pytest.raises(SetupError) as refused:
        SchemaCheck({"patternProperties": {EVIL: {}}, "unevaluatedProperties": False})

    assert refused.value.facts["fix"]


def doubled(levels: int) -> dict[str, Any]:
    """Return a schema with two references to the next level at each level."""
    twice = [{"allOf": [{"$ref": f"#/$defs/{level}"}] * 2} for level in range(levels)]
    return {**twice[0], "$defs": {str(level): one for level, one in enumerate([*twice[1:], {}])}}


def test_schema_whose_work_doubles_with_each_level_is_given_up() -> None:
    SchemaCheck(doubled(5)).check("text")

    with pytest.raises(InvalidTask, match="too many steps"):
        SchemaCheck(doubled(40)).check("text")


def test_long_value_may_take_many_steps() -> None:
    digits = [1] * (LEAST_STEPS // 2)
    digit = {"allOf": [{"minimum": 0}, {"maximum": 9}, {"type": "integer"}]}
    check = SchemaCheck({"items": {"$ref": "#/$defs/digit"}, "$defs": {"digit": digit}})

    check.check(digits)
    with pytest.raises(InvalidTask, match="10 is greater"):
        check.check([*digits, 10])


MANY = [{"id": number, "tags": [number]} for number in range(20_000)]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"uniqueItems": True}, MANY),
        ({"uniqueItems": True}, [*range(10_000), *map(str, range(10_000))]),
        ({"items": {"enum": [{"id": number, "tags": [number]} for number in range(6_000)]}}, MANY[:6_000]),
    ],
    ids=["objects", "mixed", "enum of objects"],
)
def test_keyword_that_compares_items_takes_one_pass(schema: dict[str, Any], value: Any) -> None:
    started = time.process_time()
    SchemaCheck(schema).check(value)

    assert time.process_time() - started < 10  # comparing each with all others takes more than a minute


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"prefixItems": [True], "items": True, "unevaluatedItems": False}, [0] * 20_000),
        ({"additionalProperties": True, "unevaluatedProperties": False}, {str(number): 0 for number in range(20_000)}),
    ],
)
def test_keyword_that_searches_for_each_item_is_given_up(schema: dict[str, Any], value: Any) -> None:
    with pytest.raises(InvalidTask, match="cannot be applied"):
        SchemaCheck(schema).check(value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$defs": {str(n): {"$anchor": f"a{n}"} for n in range(1_000)}, "items": {"$ref": "#a999"}}, [1] * 4_000),
        ({"items": {"not": {"enum": [*range(40_000)]}}}, [[]] * 2_000),
        ({"anyOf": [{"type": "string"}] * 3_000}, [1] * 50_000),
    ],
    ids=["anchors", "errors that are dropped", "errors of parts"],
)
def test_references_and_messages_take_no_time_that_grows_with_the_schema(schema: dict[str, Any], value: Any) -> None:
    check, started = SchemaCheck(schema), time.process_time()
    with suppress(InvalidTask):
        check.check(value)

    assert time.process_time() - started < 6


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"allOf": [{"not": {"contains": {"const": 1}}}] * 500}, [0] * 2_000),
        ({"allOf": [{"uniqueItems": True}] * 1_000}, [*range(1_000)]),
        ({"allOf": [{"not": {"const": [*range(500)]}}] * 100}, [*range(499)]),
        ({"items": {"anyOf": [*[False] * 2_000, True]}}, [1] * 500),
        ({"items": {"anyOf": [{"required": [*map(str, range(2_000))]}, True]}}, [{}] * 500),
        ({"items": {"anyOf": [{"dependentRequired": {"a": [*map(str, range(2_000))]}}, True]}}, [{"a": 1}] * 500),
    ],
    ids=["contains", "unique", "const", "false", "required", "dependent"],
)
def test_keyword_pays_for_all_that_it_goes_through(schema: dict[str, Any], value: Any) -> None:
    with pytest.raises(InvalidTask, match="too many steps"):
        SchemaCheck(schema).check(value)


def test_patterns_that_take_long_to_prepare_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "MOST_SCHEMA_STEPS", 3_000)
    patterns = [{"pattern": rf"\w{{200}}{number}"} for number in range(20)]  # each takes about 0.05 s

    with pytest.raises(SetupError, match="too complex"):
        SchemaCheck({"items": {"anyOf": patterns}})


def test_problem_of_a_long_value_names_the_problem() -> None:
    with pytest.raises(InvalidTask, match=r"\[0, 1, .*, \.\.\.\] is not of type 'string'"):
        SchemaCheck({"type": "string"}).check([*range(10_000)])


def test_value_may_be_as_deep_as_json_may_be() -> None:
    nested: Any = 1
    for _ in range(MAX_JSON_LEVELS):
        nested = [nested]

    SchemaCheck({"type": "array"}).check(nested)
    with pytest.raises(InvalidTask, match="is not of type"):
        SchemaCheck({"type": "string"}).check(nested)


def test_part_without_a_usable_id_is_refused() -> None:
    with pytest.raises(SetupError, match="part of this JSON Schema"):
        SchemaCheck({"properties": {"x": {"$schema": "http://json-schema.org/draft-04/schema#", "id": 5}}})


@pytest.mark.parametrize(
    ("items", "unique"),
    [([1, True, "1"], True), ([1, 1.0], False), ([{"a": [1]}, {"a": [1.0]}], False), ([[0], [False]], True)],
)
def test_items_are_unique_as_json_schema_means_it(items: list[Any], unique: bool) -> None:
    with nullcontext() if unique else pytest.raises(InvalidTask, match="not unique"):
        SchemaCheck({"uniqueItems": True}).check(items)


def test_check_of_a_schema_itself_is_bounded() -> None:
    required = [*range(20_000), *map(str, range(20_000))]
    started = time.process_time()
    with pytest.raises(SetupError, match="no JSON Schema"):
        SchemaCheck({"required": required})

    assert time.process_time() - started < 10


def test_schema_whose_own_check_takes_long_is_refused() -> None:
    with pytest.raises(SetupError, match="too complex"):
        SchemaCheck({"properties": {"x": {"anyOf": [True] * 20_000}}})


def test_comparison_of_nested_items_is_given_up() -> None:
    nested: Any = [*range(1_000)]
    for _ in range(150):
        nested = [nested]
    schema = {"$ref": "#/$defs/list", "$defs": {"list": {"uniqueItems": True, "items": {"$ref": "#/$defs/list"}}}}

    with pytest.raises(InvalidTask, match="cannot be applied"):
        SchemaCheck(schema).check(nested)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [("b", "abc", True), ("^b", "abc", False), ("", "", True), (r"^\d+$", "12\n", False), (r"^\u00e9\/$", "é/", True)],
)
def test_pattern_matches_anywhere_in_a_text_unless_it_is_anchored(pattern: str, text: str, matches: bool) -> None:
    assert matcher(pattern)(text) is matches


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(", "((a{1000}){1000}){1000}"])
def test_pattern_without_a_bound_is_refused_with_what_to_do(pattern: str) -> None:
    with pytest.raises(InputError, match="bounded time") as refused:
        matcher(pattern)

    assert refused.value.facts["fix"]
