"""Checks of values by JSON Schemas that are not trusted: of a task's input, a model's arguments, a tool's answer.

The time of a check is bounded whatever the schema says: its patterns are matched without backtracking, one that needs
it is left out, and the steps that a check may take grow with the value's size alone. Errors that `anyOf` or `not` drops
have messages, too: these show only the beginning of a list or an object.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice
from typing import Any, cast

from coditect.errors import InputError, InvalidTask, SetupError, missing_extra
from coditect.integrations.pattern import matcher
from coditect.wire.json import dumps

try:
    import attrs
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable
except ImportError as _missing:
    raise missing_extra("programs") from _missing

MAX_PROBLEMS = 5
LEAST_STEPS = 10_000
STEPS_PER_BYTE = 10
"""How many inner schemas may be applied for each byte of a value, beside the least steps; common schemas need one."""
STEPS_PER_SCHEMA_BYTE = 100
"""The same for each byte of a schema that is itself checked, by a schema of many parts."""
MOST_SCHEMA_STEPS = 100_000
"""How many steps the check of a schema may take at most, however long it is: about a second."""
CHARACTERS_PER_STEP = 10
"""How many characters of a list or an object that is compared cost as much as one inner schema."""
SEARCHES_PER_STEP = 100
"""How many comparisons in a list, or entries and characters of a keyword and its value, cost as much as one."""
SECONDS_PER_STEP = 0.000_03
"""How much time for preparing a pattern costs as much as one inner schema, which takes about a third of it."""
_LONGEST_PROBLEM, _LONGEST_VALUE = 300, 200
"""The most characters of a problem, and about those of a list or an object in it."""
_sorted = json.JSONEncoder(sort_keys=True).encode
_UNBOUNDED = ("patternProperties", "unevaluatedProperties")


class SchemaCheck:
    """The check of values by one JSON Schema; references to other documents are never fetched."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Prepare the check of values by a JSON Schema, of draft 2020-12 unless `$schema` names another.

        Raises:
            SetupError: when it is no valid JSON Schema, or one that cannot be applied in bounded time.
        """
        bounded = check_schema(schema)
        if all(repr(keyword) in str(schema) for keyword in _UNBOUNDED):
            fix = "use additionalProperties beside patternProperties"
            raise SetupError("A schema with patternProperties has no unevaluatedProperties here", fix=fix)
        self._validator = _knowing_anchors(bounded(_shown(schema), registry=Registry()))

    def check(self, value: Any) -> None:
        """Raise an error unless a value fits the schema; patterns that need backtracking are not checked.

        Raises:
            InvalidTask: when the value does not fit; the error has the first five problems with their places.
        """
        steps = _Steps(LEAST_STEPS + STEPS_PER_BYTE * len(dumps(value)))
        try:
            errors = attrs.evolve(self._validator, format_checker=steps).iter_errors(_shown(value))
            problems = [
                f"{error.json_path}: {error.message}"[:_LONGEST_PROBLEM] for error in islice(errors, MAX_PROBLEMS)
            ]
        except (Unresolvable, RecursionError, InputError) as error:
            raise InvalidTask("The schema cannot be applied", reason=str(error)[:_LONGEST_PROBLEM]) from error
        if problems:
            raise InvalidTask("The value does not fit the schema", errors=problems)


def check_schema(schema: Mapping[str, Any]) -> Any:
    """Return the validator class, which takes bounded time, of a JSON Schema: that of its `$schema`, or draft 2020-12.

    Raises:
        SetupError: when it is no valid JSON Schema, or too complex.
    """
    kind: Any = validator_for(schema, default=Draft202012Validator)
    bounded = _bounded(kind)
    steps = _Steps(min(LEAST_STEPS + STEPS_PER_SCHEMA_BYTE * len(dumps(schema)), MOST_SCHEMA_STEPS))
    steps.checks("regex", raises=(re.error, RecursionError))(partial(_is_pattern, steps))
    try:
        wrong = next(bounded(kind.META_SCHEMA, format_checker=steps).iter_errors(_shown(schema)), None)
    except (RecursionError, InputError) as error:
        raise SetupError("This JSON Schema is too complex", reason=str(error)[:_LONGEST_PROBLEM]) from error
    if wrong is not None:
        raise SetupError("This is no JSON Schema", reason=wrong.message[:_LONGEST_PROBLEM])
    return bounded


def _knowing_anchors(validator: Any) -> Any:
    """Return a validator that knows all anchors of its schema: another one searches for them at each reference."""
    resolver = validator._resolver
    try:
        crawled = attrs.evolve(resolver, registry=resolver._registry.crawl())
    except Exception as error:  # the boundary: parts of another draft may have any form
        reason = str(error)[:_LONGEST_PROBLEM]
        raise SetupError("A part of this JSON Schema cannot be read", reason=reason) from error
    return attrs.evolve(validator, _resolver=crawled)


class _List(list[Any]):
    """A list that is short in messages."""

    def __repr__(self) -> str:
        return _brief(self)


class _Object(dict[str, Any]):
    """An object that is short in messages."""

    def __repr__(self) -> str:
        return _brief(self)


def _shown(value: Any) -> Any:
    """Return a copy of a value whose lists and objects are short in messages."""
    match value:
        case Mapping():
            return _Object({name: _shown(inner) for name, inner in value.items()})
        case list():
            return _List([_shown(inner) for inner in value])
        case _:
            return value


def _brief(value: Any, most: int = _LONGEST_VALUE) -> str:
    """Return the beginning of a value's text, about `most` characters, in time that does not grow with the value."""
    if not isinstance(value, list | dict):
        return repr(value[: max(most, 1)] if isinstance(value, str) else value)
    left, parts = most, list[str]()
    for key, inner in value.items() if isinstance(value, dict) else (("", inner) for inner in value):
        if left <= 0:
            parts.append("...")
            break
        name = f"{_brief(key, left)}: " if isinstance(value, dict) else ""
        parts.append(name + _brief(inner, left - len(name) - 2))
        left -= len(parts[-1]) + 2
    text = ", ".join(parts)
    return f"{{{text}}}" if isinstance(value, dict) else f"[{text}]"


class _Steps(FormatChecker):
    """The budget of steps of one schema check; a `FormatChecker`, since validators pass that on to inner validators."""

    def __init__(self, limit: int) -> None:
        super().__init__(formats=())
        self._left = limit
        self._enums: dict[int, frozenset[Hashable]] = {}

    def members(self, enum: list[Any]) -> frozenset[Hashable]:
        """Return the members of an `enum` as comparable values, made once for each check."""
        if id(enum) not in self._enums:
            self._enums[id(enum)] = frozenset(map(self.comparable, enum))
        return self._enums[id(enum)]

    def comparable(self, value: Any) -> Hashable:
        """Return a value that is equal for equal values of JSON Schema only: 1 is 1.0, but neither True nor "1"."""
        if not isinstance(value, dict | list):
            return (isinstance(value, bool), value)
        text = _sorted(_whole(value))
        self.take(len(text) // CHARACTERS_PER_STEP)
        return ("json", text)

    def matches(self, pattern: str) -> Callable[[str], bool] | None:
        """Return the matcher of a pattern, after paying for its preparation, which may take 0.1 s.

        None when it has look-around or back-references, which need backtracking.
        """
        since = time.thread_time()
        try:
            return matcher(pattern)
        except InputError:
            return None
        finally:
            self.take(int((time.thread_time() - since) / SECONDS_PER_STEP))

    def take(self, steps: int = 1) -> None:
        self._left -= steps
        if self._left < 0:
            raise InputError(
                "The schema takes too many steps for the value",
                fix="a smaller schema, or fewer $ref to schemas with $ref",
            )


@lru_cache(maxsize=20)
def _bounded(kind: Any) -> Any:
    """Return the validator class of a JSON Schema draft, changed so that its checks take bounded time."""
    keywords = kind.VALIDATORS | {
        "pattern": _pattern,
        "patternProperties": _named,
        "additionalProperties": partial(_others, kind.VALIDATORS["additionalProperties"]),
        "uniqueItems": _unique,
        "enum": _enum,
    }
    if "const" in keywords:
        keywords["const"] = _const
    paid = {keyword: _paid(keyword, check) for keyword, check in keywords.items()}
    bounded = cast("Any", extend)(kind, paid)
    bounded.evolve, bounded.descend = _evolve, _descend(bounded.descend)
    return bounded


def _descend(inner: Callable[..., Any]) -> Callable[..., Any]:
    def descend(validator: Any, instance: Any, schema: Any, **places: Any) -> Any:
        if isinstance(schema, bool):  # no validator is made of it, which would be counted
            validator.format_checker.take()
        return inner(validator, instance, schema, **places)

    return descend


def _evolve(validator: Any, **changes: Any) -> Any:
    """Count one step, and return an inner schema's validator, of the outer one's class, whatever `$schema` it names."""
    validator.format_checker.take()
    return attrs.evolve(validator, **changes)


def _whole(value: Any) -> Any:
    match value:
        case dict():
            return {name: _whole(inner) for name, inner in value.items()}
        case list():
            return [_whole(inner) for inner in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value


def _unique(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """Check `uniqueItems` in time that grows with the value; jsonschema compares each object with all others."""
    if wanted and isinstance(value, list) and len({*map(validator.format_checker.comparable, value)}) < len(value):
        yield ValidationError("the items are not unique")


def _enum(validator: Any, enum: list[Any], value: Any, schema: Any) -> Iterator[ValidationError]:
    steps = validator.format_checker
    if isinstance(value, dict | list) and not any(isinstance(member, dict | list) for member in enum):
        yield ValidationError(f"a list or an object is not one of {enum!r}")
    elif steps.comparable(value) not in steps.members(enum):
        yield ValidationError(f"{value!r} is not one of {enum!r}")


def _const(validator: Any, const: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    comparable = validator.format_checker.comparable
    if comparable(value) != comparable(const):
        yield ValidationError(f"{const!r} was expected")


def _paid(keyword: str, check: Any) -> Callable[..., Iterator[ValidationError]]:
    """Return a keyword's check that pays for all that it may go through beside inner schemas, and for each error."""

    def paid(validator: Any, inner: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        steps = validator.format_checker
        steps.take(_cost(keyword, inner, value))
        for error in check(validator, inner, value, schema) or ():
            steps.take()
            yield error

    return paid


def _cost(keyword: str, inner: Any, value: Any) -> int:
    searches = sum(len(each) for each in (inner, value) if isinstance(each, str | list | dict))
    match keyword:
        case "contains" if isinstance(value, list):
            return len(value)  # its one validator is applied to each item
        case "uniqueItems" | "additionalProperties" | "additionalItems":
            searches *= 10  # each entry is sorted or shown
        case "unevaluatedItems" | "unevaluatedProperties" if isinstance(value, list | dict):
            searches += len(value) ** 2  # a list is searched for each item
        case "$ref":
            searches += inner.count("/") ** 2  # the way to each part is followed from the beginning
        case "dependencies" | "dependentRequired" if isinstance(value, dict):
            searches += sum(len(names) for names in inner.values() if isinstance(names, list))
    return searches // SEARCHES_PER_STEP


def _is_pattern(steps: _Steps, value: Any) -> bool:
    """Return True for a regular expression and for a value that is no text; any other text raises an error of `re`."""
    return not isinstance(value, str) or steps.matches(value) is not None or bool(re.compile(value))


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    matches = validator.format_checker.matches(pattern) if isinstance(value, str) else None
    if matches is not None and not matches(value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _named(validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any) -> Iterator[ValidationError]:
    for pattern, inner in patterns.items() if isinstance(value, dict) else ():
        matches = validator.format_checker.matches(pattern)
        for name in filter(matches, value) if matches is not None else ():
            yield from validator.descend(value[name], inner, path=name, schema_path=pattern)


def _others(check: Any, validator: Any, allowed: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """Check `additionalProperties` as a draft does, given only properties that no pattern of the schema names.

    A pattern that is left out may name any.
    """
    matchers = [*map(validator.format_checker.matches, schema.get("patternProperties", ()))]
    if matchers and isinstance(value, dict):
        named = {name for name in value for matches in matchers if matches is None or matches(name)}
        value = {name: member for name, member in value.items() if name not in named}
        schema = {key: keyword for key, keyword in schema.items() if key != "patternProperties"}
    yield from check(validator, allowed, value, schema)
