"""Checks of a caller's arguments, which return the checked value or raise an `InputError` that names the parameter.

Each function takes the parameter's name first. No value is guessed: `True` is not a number, and a text is not a set of
letters. Natural spellings are accepted: a text for an enum member, one text for a set of texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from difflib import SequenceMatcher
from enum import StrEnum
from math import isfinite
from typing import Any, NoReturn, TypeVar

from coditect.errors import InputError
from coditect.model.duration import Duration, seconds

E = TypeVar("E", bound=StrEnum)

SPAN_FIX = "a number and a unit: 250ms, 30s, 5m, 2h or 2d; or seconds, or a timedelta"


def refuse(parameter: str, sentence: str, value: object, fix: str) -> NoReturn:
    """Raise the InputError of one parameter, with the given value shortened to 80 characters."""
    raise InputError(sentence, parameter=parameter, given=shown(value), fix=fix)


def check_names(noun: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first name of the given arguments that is not known; the fix is the nearest known name, or all."""
    parameters = tuple(known)
    for name in names:
        if name not in parameters:
            near = max(parameters, key=lambda parameter: _likeness(name, parameter))
            fix = f"did you mean {near}?" if _likeness(name, near) >= 0.5 else f"one of {', '.join(parameters)}"
            raise InputError(f"{noun} has no such parameter", parameter=name[:80], fix=fix)


def _likeness(name: str, known: str) -> float:
    """Return how alike two names are, from 0 to 1, as a whole or in their last words: max_retries is like retry."""
    pairs = ((name, known), (name.rpartition("_")[2], known.rpartition("_")[2]))
    return max(SequenceMatcher(None, text, other).ratio() for text, other in pairs)


def shown(value: object) -> str:
    """Return the repr of a value, at most 80 characters long; the name of its type when the repr fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a stranger's own __repr__
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def choice(parameter: str, value: object, kind: type[E]) -> E:
    """Return the enum member that an argument names, by the member itself or by its text in any case."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        for member in kind:
            if value.lower() == member.value:
                return member
    refuse(parameter, f"There is no such {parameter}", value, f"one of {', '.join(kind)}")


def span(parameter: str, value: object, fix: str = SPAN_FIX) -> Duration:
    """Check that an argument is a duration, such as `"30s"` or a number, and return the argument unchanged."""
    if isinstance(value, str | int | float | timedelta) and not isinstance(value, bool):
        try:
            seconds(value)
        except InputError as error:
            refuse(parameter, error.sentence, value, fix)
        return value
    refuse(parameter, "This is no duration", value, fix)


def moment(parameter: str, value: object) -> Duration | datetime:
    """Check that an argument is a duration or an instant with a time zone, and return the argument unchanged."""
    if not isinstance(value, datetime):
        return span(parameter, value, "a duration from now on, such as 30s, or a datetime with its time zone")
    if value.tzinfo is None:
        refuse(parameter, "The instant has no time zone", value, "datetime.now(UTC) + ..., or a duration such as 30s")
    return value


def whole(parameter: str, value: object, low: int, high: int) -> int:
    """Check that an argument is a whole number within the given bounds, and return the number."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        refuse(parameter, "This is no whole number within its bounds", value, f"between {low} and {high}")
    return value


def number(parameter: str, value: object) -> float:
    """Check that an argument is a finite number of zero or more, and return the number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value >= 0):
        refuse(parameter, "This is no number of zero or more", value, "such as 1 or 0.5")
    return value


def yes_or_no(parameter: str, value: object) -> bool:
    """Check that an argument is True or False, and return the argument; no other value counts as a truth value."""
    if not isinstance(value, bool):
        refuse(parameter, "This is neither True nor False", value, "True or False")
    return value


def text(parameter: str, value: object, *, shortest: int = 0, longest: int = 255) -> str:
    """Check that an argument is a text within the given bounds, in bytes of UTF-8, and return the text."""
    if not isinstance(value, str):
        refuse(parameter, "This is no text", value, "put it in quotes")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        refuse(parameter, "This text has a lone surrogate, which UTF-8 cannot express", value, "decode it as UTF-8")
    if not shortest <= size <= longest:
        refuse(parameter, "This text has another length than it may", value, f"{shortest} to {longest} bytes")
    return value


def exceptions(parameter: str, value: Any) -> tuple[type[BaseException], ...]:
    """Return an argument of exception classes, a tuple or one class, as a tuple."""
    kinds = value if isinstance(value, tuple) else (value,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            refuse(parameter, "This is no exception", kind, "such as (OSError, TimeoutError)")
    return kinds


def texts(parameter: str, value: Any) -> frozenset[str]:
    """Return the argument as a set of texts; a single text becomes a set of one."""
    if isinstance(value, str):
        return frozenset({value})
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        refuse(parameter, "This is no set of texts", value, 'such as {"python", "fast"}')
    found = tuple(value)
    for item in found:
        if not isinstance(item, str):
            refuse(parameter, "This is no set of texts", item, 'such as {"python", "fast"}')
    return frozenset(found)
