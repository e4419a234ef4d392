"""The values of settings, read from a program's variables and checked.

Each function raises SetupError for a value that is wrong; the error names the variable.
"""

from __future__ import annotations

from collections.abc import Mapping

from coditect.errors import SetupError


def flag(values: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return a setting that is true or false."""
    text = values.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise SetupError("A setting is true or false", variable=name, given=text)
    return text.lower() in ("true", "1", "yes")


def number(values: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """Return a setting that is a number within its bounds."""
    text = values.get(name)
    if text is None:
        return default
    try:
        found = float(text)
    except ValueError as error:
        raise SetupError("A setting is a number", variable=name, given=text) from error
    if not low <= found <= high:
        raise SetupError("A setting is outside its range", variable=name, given=text, low=low, high=high)
    return found


def whole(values: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return a setting that is a whole number within its bounds."""
    found = number(values, name, default, low, high)
    if found != int(found):
        raise SetupError("A setting is a whole number", variable=name, given=found)
    return int(found)


def optional(values: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """Return a setting that is a whole number within its bounds; None when it is not set."""
    return whole(values, name, 0, low, high) if name in values else None


def choice(values: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """Return a setting that is one of a few words, the first by default."""
    text = values.get(name, allowed[0])
    for word in allowed:
        if text.lower() == word.lower():
            return word
    raise SetupError("A setting is one of a few words", variable=name, given=text, allowed=allowed)
