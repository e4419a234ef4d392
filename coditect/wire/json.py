"""JSON encoding and decoding for all messages, the same with and without orjson; what JSON cannot express is refused.

orjson does the work when it is installed, else the standard library. Both give equal results: the functions below
define JSON for this project, and orjson is used only where it agrees with the definition.

=====================  ==================================================================================
value                  on the wire
=====================  ==================================================================================
float                  finite; NaN and Infinity are refused
int                    64 bits (-2^63 to 2^64-1) are written; a longer one of a foreign publisher is read
                       as the nearest float
str                    without lone surrogates
dict                   keys are text; any other key is refused rather than changed
list, tuple            a list
Enum, UUID             the member's value, the id as text
nesting                254 levels are written
anything else          refused, or what the caller's `otherwise` makes of it
=====================  ==================================================================================

A refusal names the place of the part that JSON cannot express: `at='orders[2].price'`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from coditect.errors import InvalidTask

orjson: Any
try:
    import orjson
except ImportError:  # the `speed` extra is not installed
    orjson = None

MAX_JSON_LEVELS = 254
_UNWRITABLE = "The value cannot be written as JSON"
_PLAIN = frozenset({type(None), bool})
_LEAST = -(2**63)
_MOST = 2**64 - 1
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_OTHER_ESCAPE = re.compile(r"\\[^u]")
_LONE_SURROGATE = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
_MAX_PLACE_CHARS = 500
_MAX_SEARCHED_BYTES = 64 * 1024
_ORJSON_BUFFER = 4096
"""The size of orjson's buffers: a shorter output is copied, since it would keep a whole buffer in memory.

orjson shortens a buffer of 4 KiB in place. Ten thousand remembered results of `null` held 40 MB.
"""
_OPTIONS = 0 if orjson is None else orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


class _Refused(Exception):
    """The reason why JSON cannot express a part of a value, and the keys and indexes that lead to the part."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.place: list[str | int] = []

    def as_invalid(self, sentence: str) -> InvalidTask:
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.place)
        at = {"at": "".join(steps).removeprefix(".")[:_MAX_PLACE_CHARS]} if self.place else {}
        return InvalidTask(sentence, **at, reason=str(self)[:200])


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"JSON has no {type(value).__name__}")


def loads(body: bytes) -> Any:
    """Parse a JSON document into plain Python values.

    Raises:
        InvalidTask: when the document is not JSON, not UTF-8, or nested beyond the parser's limit.
    """
    try:
        if orjson is not None:
            return orjson.loads(body)
        return _read(body)
    except (ValueError, RecursionError) as error:
        raise (_misread(body) or _Refused(str(error))).as_invalid("The body is not valid JSON") from error


def _misread(body: bytes) -> _Refused | None:
    """Return which number or text of a body JSON does not have, and where; None when the body is no JSON otherwise.

    A long body is not searched: the search could take more memory than the body itself.
    """
    if len(body) > _MAX_SEARCHED_BYTES:
        return None
    with suppress(ValueError, RecursionError):
        return _flaw(json.loads(body.decode(), parse_int=_whole))
    return None


def dumps(value: Any, *, otherwise: Callable[[Any], Any] = _refuse) -> bytes:
    """Return a value as the bytes of a compact JSON document; `otherwise` converts values of unsupported types.

    Raises:
        InvalidTask: when JSON cannot express the value.
        Exception: any error that `otherwise` raises.
    """
    written = dumps_plain(value)
    if written is not None and (value is None or b"null" not in written or _agrees(value)):
        return written
    try:
        return _written(_plain(value, _Rules(otherwise), MAX_JSON_LEVELS))
    except _Refused as error:
        raise error.as_invalid(_UNWRITABLE) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTask(_UNWRITABLE, reason=str(error)[:200]) from error


def dumps_plain(value: Any) -> bytes | None:
    """Return a plain value as JSON, and NaN as null, by orjson; None without orjson, and where only `dumps` decides."""
    if orjson is None:
        return None
    try:
        written: bytes = orjson.dumps(value, option=_OPTIONS)
    except TypeError:
        return None
    return b"%b" % written if len(written) < _ORJSON_BUFFER else written


def check(value: Any, *, any_keys: bool = False, any_floats: bool = False, sentence: str = _UNWRITABLE) -> None:
    """Refuse a value with a number or a key that JSON cannot express, whatever other objects are in the value.

    With `any_keys` only a key that is None or no finite number is refused, with `any_floats` no float.

    Raises:
        InvalidTask: when there is such a number or key; the error names the place.
    """

    def look(part: Any) -> Any:
        if isinstance(part, Set | deque):
            return list(part)
        if isinstance(part, Iterator):
            raise TypeError("an iterator is read once; make a list of it")
        if isinstance(part, Decimal) and not (any_floats or part.is_finite()):
            raise TypeError(f"{part} is no number of JSON")
        return None

    if (flaw := _flaw(value, _Rules(look, any_keys, any_floats))) is not None:
        raise flaw.as_invalid(sentence)


def is_plain(value: Any) -> bool:
    """Tell quickly whether JSON can express a value without any conversion; False also where only orjson could tell."""
    written = dumps_plain(value)
    return written is not None and (b"null" not in written or _agrees(value))


def check_text(body: bytes) -> None:
    """Check that a text which a person wrote is JSON that every reader reads alike.

    Raises:
        InvalidTask: when it is no JSON, or has an integer that most readers would round.
    """
    loads(body)
    flaw = None
    with suppress(ValueError, RecursionError):
        flaw = _flaw(json.loads(body.decode()))
    if flaw is not None:
        raise flaw.as_invalid("The body is not valid JSON")


@dataclass(frozen=True, slots=True)
class _Rules:
    """The rules for values that JSON lacks: how to convert them, and which keys and floats are allowed."""

    otherwise: Callable[[Any], Any] = _refuse
    any_keys: bool = False
    any_floats: bool = False

    def key(self, key: Any) -> str | int:
        if isinstance(key, str):
            return _text(key)
        if not self.any_keys:
            raise _Refused(f"a key is text, not {type(key).__name__}")
        if key is None or (isinstance(key, float | Decimal) and not math.isfinite(key)):
            raise _Refused(f"a key is text, not {key}")
        return key if isinstance(key, int) else str(key)


def _flaw(value: Any, rules: _Rules = _Rules()) -> _Refused | None:
    """Return why JSON cannot express a value of any depth, and where; None when it can."""
    try:
        _plain(value, rules, sys.maxsize)
    except _Refused as error:
        return error
    return None


def _read(body: bytes) -> Any:
    text = body.decode()
    value = json.loads(text, parse_constant=_no_number, parse_int=_whole, parse_float=_finite)
    if "\\u" in text and _LONE_SURROGATE.search(_OTHER_ESCAPE.sub(" ", text)):
        raise ValueError("a lone surrogate has no UTF-8")
    return value


def _agrees(value: Any) -> bool:
    """Tell whether each null in orjson's output stands for None, since orjson writes null for NaN, too."""
    try:
        _written(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _written(plain: Any) -> bytes:
    return _encode(plain).encode()


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no number of JSON")


def _whole(text: str) -> int | float:
    if len(text) <= len(str(_MOST)) and _LEAST <= (number := int(text)) <= _MOST:
        return number
    return _finite(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _plain(value: Any, rules: _Rules, levels: int) -> Any:
    """Convert a value, with all values inside it, to None, bool, int, float, str, list and dict."""
    if levels < 0:
        raise RecursionError(f"nested more than {MAX_JSON_LEVELS} levels deep")
    if type(value) in _PLAIN:
        return value
    plain: Any
    match value:
        case str():
            plain = _text(value)
        case int() | float():
            plain = value if rules.any_floats and isinstance(value, float) else _number(value)
        case Enum():
            plain = _plain(value.value, rules, levels)
        case dict():
            plain = _plain_dict(value, rules, levels)
        case list() | tuple():
            plain = _plain_list(value, rules, levels)
        case UUID():
            plain = str(value)
        case _:
            try:
                made = rules.otherwise(value)
            except TypeError as error:
                raise _Refused(str(error)) from error
            plain = _plain(made, rules, levels - 1)
    return plain


def _plain_dict(value: dict[Any, Any], rules: _Rules, levels: int) -> dict[str | int, Any]:
    plain = {}
    for key, item in value.items():
        name = rules.key(key)
        try:
            plain[name] = _plain(item, rules, levels - 1)
        except (_Refused, InvalidTask) as error:
            raise _below(name, error) from error.__cause__
    return plain


def _plain_list(value: Sequence[Any], rules: _Rules, levels: int) -> list[Any]:
    plain = []
    for index, item in enumerate(value):
        try:
            plain.append(_plain(item, rules, levels - 1))
        except (_Refused, InvalidTask) as error:
            raise _below(index, error) from error.__cause__
    return plain


def _below(step: str | int, error: _Refused | InvalidTask) -> _Refused | InvalidTask:
    """Return a refusal with a key or an index at the front of the place that it names."""
    if isinstance(error, _Refused):
        error.place.insert(0, step)
        return error
    inner = str(error.facts.pop("at", ""))
    named = f"[{step}]" if isinstance(step, int) else step
    joined = named + (inner if inner.startswith("[") or not inner else f".{inner}")
    error.facts = {"at": joined[:_MAX_PLACE_CHARS]} | error.facts
    return error


def _text(value: str) -> str:
    plain = str.__str__(value)  # what is in it, whatever a subclass shows
    if not plain.isascii():
        try:
            plain.encode()
        except UnicodeEncodeError as error:
            raise _Refused("a lone surrogate has no UTF-8") from error
    return plain


def _number(value: float) -> int | float:
    if isinstance(value, int):
        if not _LEAST <= value <= _MOST:
            raise _Refused("an integer has more than 64 bits")
        return int(value)
    if not math.isfinite(value):
        raise _Refused(f"{value} is no number of JSON")
    return float(value)
