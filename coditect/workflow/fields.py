"""Checks of a definition's field values: each returns the checked value, or raises an InputError with an example.

Builder and schema share the checks, so that a workflow in Python and a workflow in a file mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

from coditect.errors import InputError
from coditect.model.capability import Priority, check_capability_name, nearest_names
from coditect.model.duration import duration_text, milliseconds
from coditect.model.retry import RETRY_DELAYS_MS, Retry
from coditect.wire.json import dumps, loads
from coditect.workflow.definition import (
    LEAST_HEARTBEAT_MS,
    MOST_ARTIFACTS,
    MOST_ELEMENTS,
    MOST_LABELS,
    MOST_PREDECESSORS,
    From,
    Join,
    Repeat,
    check_name,
    check_node_name,
)
from coditect.workflow.template import FROM, LITERAL, Literal, check_template

MOST_EXPRESSION_CHARACTERS = 1_000
MOST_TEXT_CHARACTERS = 2_000
MOST_LABEL_CHARACTERS = 200
_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_MOST_MS = 10 * 366 * 86_400_000

_milliseconds = lru_cache(maxsize=1_000)(milliseconds)  # a large workflow has few durations, thousands of times
_duration_text = lru_cache(maxsize=1_000)(duration_text)

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)
Met: TypeAlias = Callable[[From], None]
"""A callback that receives the placeholders in a value."""


def for_pydantic(check: Callable[[Any], T]) -> Callable[[Any], T]:
    """Return a check whose InputError is a ValueError, which pydantic reports with the others of a document."""

    def checked(value: Any) -> T:
        try:
            return check(value)
        except InputError as error:
            raise ValueError(str(error)) from error

    return checked


def text(value: object) -> str:
    """Check that a value is a text of up to 2,000 characters, and return the text."""
    if not isinstance(value, str):
        raise InputError("Text is expected", given=_shown(value))
    if len(value) > MOST_TEXT_CHARACTERS:
        raise InputError("The text is too long", most_characters=MOST_TEXT_CHARACTERS)
    return value


def some_text(value: object) -> str:
    """Check that a value is a text of up to 2,000 characters, not only white space, and return the text."""
    if not text(value).strip():
        raise InputError("The text is empty", fix="say something")
    return text(value)


def expression(value: object) -> str:
    """Check the type and length of an expression, and return its text; the syntax is checked later, by the parser."""
    written = some_text(value.expression if isinstance(value, From) else value)
    if len(written) > MOST_EXPRESSION_CHARACTERS:
        raise InputError("The expression is too long", most_characters=MOST_EXPRESSION_CHARACTERS)
    return written


def capability(value: object) -> str:
    """Check a capability's name, and return the name."""
    return check_capability_name(text(value))


def duration_ms(value: object) -> int:
    """Convert a duration, such as `30s`, to milliseconds; refuse one below 1 ms or above ten years."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise InputError("A duration needs a number and a unit: 250ms, 30s, 5m, 2h or 2d", given=_shown(value))
    whole: int = _milliseconds(value)
    if whole > _MOST_MS:
        raise InputError("A duration is at most ten years", given=_shown(value))
    return whole


def instant_ms(value: object) -> int:
    """Convert an instant, a text such as `2026-12-24T08:00:00+01:00`, to milliseconds since the epoch."""
    fix = "write date, time and offset from UTC: 2026-12-24T08:00:00+01:00, or Z for UTC"
    try:
        found = datetime.fromisoformat(text(value))
    except ValueError:
        raise InputError("This is no instant", given=_shown(value), fix=fix) from None
    if found.tzinfo is None:
        raise InputError("An instant needs its offset from UTC", given=_shown(value), fix=fix)
    return max(0, round(found.timestamp() * 1000))


def instant(value: object) -> Any:
    """Check an instant, or an expression that finds one, and return it in the form of a workflow document."""
    if isinstance(value, From | Mapping):
        plain = template(value)
        if list(plain) != [FROM]:
            raise InputError("An instant is a text, or {$from: expression}", given=_shown(value))
        return plain
    written = value.isoformat() if isinstance(value, datetime) else value
    instant_ms(written)
    return written


def task_delay(value: object) -> int | str:
    """Convert the delay of a task's first attempt: a duration to milliseconds, an instant to text."""
    if isinstance(value, datetime) or (isinstance(value, str) and "-" in value):  # no duration has a hyphen
        return str(instant(value))
    return duration_ms(value)


def labels(value: object) -> dict[str, str]:
    """Check the labels of a workflow, at most 16 texts of 1 to 200 characters by name, and return a new copy."""
    if not isinstance(value, Mapping):
        raise InputError("Labels are an object of texts", given=_shown(value), fix='write {"team": "x"}')
    if len(value) > MOST_LABELS:
        raise InputError("A workflow has too many labels", count=len(value), most=MOST_LABELS)
    for name, label in value.items():
        if not isinstance(name, str) or _LABEL_NAME.fullmatch(name) is None:
            fix = "1 to 63 letters, digits, dots, hyphens, slashes and _, beginning with a letter or a digit"
            raise InputError("This is no name of a label", given=_shown(name), fix=fix)
        if not isinstance(label, str) or not 0 < len(label) <= MOST_LABEL_CHARACTERS or not label.isprintable():
            fix = f"1 to {MOST_LABEL_CHARACTERS} printable characters; a number in quotes"
            raise InputError("A label's value is a text", label=name, given=_shown(label), fix=fix)
    return dict(value)


def artifacts(value: object) -> dict[str, str]:
    """Check the artifacts that an approval requires, at most 50 expressions by names, and return a new copy."""
    if not isinstance(value, Mapping):
        raise InputError(
            "Artifacts are an object of expressions", given=_shown(value), fix='write {"tests": "results.t"}'
        )
    if len(value) > MOST_ARTIFACTS:
        raise InputError("A gate requires too many artifacts", count=len(value), most=MOST_ARTIFACTS)
    return {check_node_name(text(name)): expression(source) for name, source in value.items()}


def signal(value: object) -> str:
    """Check a signal's name, and return the name."""
    return check_name("signal", text(value))


def checkpoint(value: object) -> str:
    """Check the name that a client or an agent gives to a checkpoint, and return the name."""
    return check_name("checkpoint", text(value))


def heartbeat_ms(value: object) -> int:
    """Convert a heartbeat, the longest silence allowed to a task's agent, to milliseconds; at least 45 s."""
    whole = duration_ms(value)
    if whole < LEAST_HEARTBEAT_MS:
        fix = "agents say every 20 s that a task still runs, and one word of them may be lost"
        raise InputError("A heartbeat is at least 45s", given=_shown(value), fix=fix)
    return whole


def count(limit: int) -> Callable[[object], int]:
    """Return a function that checks that a value is a whole number from 1 to `limit`, and returns the value."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise InputError(f"A whole number from 1 to {limit} is expected", given=_shown(value))
        return value

    return read


limit = count(MOST_ELEMENTS)
least = count(MOST_PREDECESSORS)


def join(value: object) -> Join:
    """Check that a join value is all, any or a whole number, and return it; the number's range is checked later."""
    match value:
        case "all":
            return "all"
        case "any":
            return "any"
        case int() if not isinstance(value, bool):
            return value
        case _:
            raise InputError("`join` is all, any or a number", given=_shown(value))


def one_of(choices: type[Choice]) -> Callable[[object], Choice]:
    """Return a function that converts a text to a member of the given enum, or raises an InputError."""

    members = {choice.value: choice for choice in choices}

    def read(value: object) -> Choice:
        if not isinstance(value, str) or value not in members:
            raise InputError(f"One of {', '.join(members)} is expected", given=_shown(value))
        return members[value]

    return read


priority = one_of(Priority)


def delay(value: object) -> str:
    """Check a retry delay, and return it as a duration text such as `1s`."""
    return _duration_text(duration_ms(value))


def longest_delay(value: object) -> str:
    """Check the longest delay of a retry policy, at most 1 h, and return it as a duration text."""
    if duration_ms(value) > RETRY_DELAYS_MS[-1]:
        raise InputError("A retry's cap is at most 1h", given=_shown(value), fix="1h or less")
    return delay(value)


def retry(value: object) -> Retry:
    """Convert a retry policy, or its fields, to a policy with delays as texts; refuse one that names exceptions."""
    policy = value if isinstance(value, Retry) else Retry(**_retry_fields(retry_object(value)))
    if policy.on != (Exception,):
        raise InputError("A workflow's retry says nothing of exceptions", fix="say `on` where the handler is")
    return Retry(policy.max_attempts, delay(policy.first), longest_delay(policy.cap))


def retry_object(value: object) -> Mapping[str, Any]:
    """Check that a document's retry policy is an object, and return it; the schema checks its fields."""
    if not isinstance(value, Mapping):
        raise InputError("A retry policy is an object of max_attempts, first, cap", given=_shown(value))
    return value


def repeat(value: object) -> Repeat:
    """Convert a loop, or an object of its fields `until`, `most` and `every`, to a checked loop."""
    if isinstance(value, Repeat):
        value = {"until": value.until, "most": value.most, "every": f"{value.every_ms}ms" if value.every_ms else None}
    loop = repeat_object(value)
    if unknown := set(loop) - {"until", "most", "every"}:
        raise InputError("A loop has only until, most, every", given=sorted(map(str, unknown))[:5])
    pause = loop.get("every")
    every_ms = 0 if pause is None else duration_ms(pause)
    return Repeat(expression(loop.get("until")), count(1_000)(loop.get("most")), every_ms)


def repeat_object(value: object) -> Mapping[str, Any]:
    """Check that a document's loop is an object, and return it; the schema checks its fields."""
    if not isinstance(value, Mapping):
        raise InputError("A loop is an object of until, most, every", given=_shown(value))
    return value


def _retry_fields(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if unknown := set(value) - {"max_attempts", "first", "cap"}:
        raise InputError("A retry policy has only max_attempts, first, cap", given=sorted(map(str, unknown))[:5])
    return value


def over(value: object, met: Met = lambda _: None) -> str | list[Any]:
    """Check the list that a map iterates over, or the expression that finds it, and return it as plain JSON."""
    if isinstance(value, From):
        met(value)
    if isinstance(value, str | From):
        return expression(value)
    if not isinstance(value, list | tuple):
        raise InputError("A map goes over a list, or over what an expression finds", given=_shown(value))
    listed: list[Any] = template(value, met)
    return listed


def template(value: object, met: Met = lambda _: None) -> Any:
    """Convert an input with `From` and `Literal` objects to plain JSON, check it, and return a new copy.

    Every `From` in the input is passed to `met`.
    """

    def plain_placeholder(part: Any) -> Any:
        if isinstance(part, From):
            met(part)
        return _plain(part)

    try:
        plain = loads(dumps(value, otherwise=plain_placeholder))
        check_template(plain)
    except RecursionError:
        raise InputError("An input is nested too deep") from None
    return plain


def nearest(name: str, known: tuple[str, ...]) -> str:
    """Return a hint for a mistyped word: the most similar of the known words, or all of them."""
    found = nearest_names(name, known)
    return f"did you mean {found[0]}?" if found else f"there are {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, From):
        return {FROM: expression(value)}
    if isinstance(value, Literal):
        return {LITERAL: value.value}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclass_fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):  # a pydantic model, which the model must not import
        return dump(mode="json")
    raise TypeError(f"JSON has no {type(value).__name__}")


def _shown(value: object) -> str:
    return repr(value)[:80]
