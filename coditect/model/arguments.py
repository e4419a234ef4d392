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


def refuse(parameter: str, sentence: str, given: object, fix: str) -> NoReturn:
    """Raise the InputError of one parameter, with the given value shortened to 80 characters."""
    raise InputError(sentence, parameter=parameter, given=shown(given), fix=fix)


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first name of the given arguments that is not known; the fix is the nearest known name, or all."""
    names = tuple(known)
    for name in given:
        if name not in names:
            near = max(names, key=lambda known: _likeness(name, known))
            fix = f"did you mean {near}?" if _likeness(name, near) >= 0.5 else f"one of {', '.join(names)}"
            raise InputError(f"{what} has no such parameter", parameter=name[:80], fix=fix)


def _likeness(name: str, known: str) -> float:
    """Return how alike two names are, from 0 to 1, as a whole or in their last words: max_retries is like retry."""
    pairs = ((name, known), (name.rpartition("_")[2], known.rpartition("_")[2]))
    return max(SequenceMatcher(None, one, other).ratio() for one, other in pairs)


def shown(given: object) -> str:
    """Return the repr of a value, at most 80 characters long; the name of its type when the repr fails."""
    try:
        text = repr(given)
    except Exception:  # noqa: BLE001 - a stranger's own __repr__
        return f"a {type(given).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def choice(parameter: str, given: object, kind: type[E]) -> E:
    """Return the enum member that an argument names, by the member itself or by its text in any case."""
    if isinstance(given, kind):
        return given
    if isinstance(given, str):
        for member in kind:
            if given.lower() == member.value:
                return member
    refuse(parameter, f"There is no such {parameter}", given, f"one of {', '.join(kind)}")


def span(parameter: str, given: object) -> Duration:
    """Check that an argument is a duration, such as `"30s"` or a number, and return the argument unchanged."""
    return _span(parameter, given, "a number and a unit: 250ms, 30s, 5m, 2h or 2d; or seconds, or a timedelta")


def _span(parameter: str, given: object, fix: str) -> Duration:
    if isinstance(given, str | int | float | timedelta) and not isinstance(given, bool):
        try:
            seconds(given)
        except InputError as error:
            refuse(parameter, error.sentence, given, fix)
        return given
    refuse(parameter, "This is no duration", given, fix)


def moment(parameter: str, given: object) -> Duration | datetime:
    """Check that an argument is a duration or an instant with a time zone, and return the argument unchanged."""
    if not isinstance(given, datetime):
        return _span(parameter, given, "a duration from now on, such as 30s, or a datetime with its time zone")
    if given.tzinfo is None:
        refuse(parameter, "The instant has no time zone", given, "datetime.now(UTC) + ..., or a duration such as 30s")
    return given


def whole(parameter: str, given: object, low: int, high: int) -> int:
    """Check that an argument is a whole number within the given bounds, and return the number."""
    if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
        refuse(parameter, "This is no whole number within its bounds", given, f"between {low} and {high}")
    return given


def number(parameter: str, given: object) -> float:
    """Check that an argument is a finite number of zero or more, and return the number."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not (isfinite(given) and given >= 0):
        refuse(parameter, "This is no number of zero or more", given, "such as 1 or 0.5")
    return given


def yes_or_no(parameter: str, given: object) -> bool:
    """Check that an argument is True or False, and return the argument; no other value counts as a truth value."""
    if not isinstance(given, bool):
        refuse(parameter, "This is neither True nor False", given, "True or False")
    return given


def text(parameter: str, given: object, *, shortest: int = 0, longest: int = 255) -> str:
    """Check that an argument is a text within the given bounds, in bytes of UTF-8, and return the text."""
    if not isinstance(given, str):
        refuse(parameter, "This is no text", given, "put it in quotes")
    try:
        size = len(given.encode())
    except UnicodeEncodeError:
        refuse(parameter, "This text has a lone surrogate, which UTF-8 cannot express", given, "decode it as UTF-8")
    if not shortest <= size <= longest:
        refuse(parameter, "This text has another length than it may", given, f"{shortest} to {longest} bytes")
    return given


def texts(parameter: str, given: Any) -> frozenset[str]:
    """Return the argument as a set of texts; a single text becomes a set of one."""
    if isinstance(given, str):
        return frozenset({given})
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        refuse(parameter, "This is no set of texts", given, 'such as {"python", "fast"}')
    found = tuple(given)
    for one in found:
        if not isinstance(one, str):
            refuse(parameter, "This is no set of texts", one, 'such as {"python", "fast"}')
    return frozenset(found)
