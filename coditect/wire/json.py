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
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from coditect.errors import InvalidTask

orjson: Any
try:
    import orjson
except ImportError:  # the `speed` extra is not installed
    orjson = None

MOST_LEVELS = 254
_PLAIN = frozenset({type(None), bool, str})
_LEAST = -(2**63)
_MOST = 2**64 - 1
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_OTHER_ESCAPE = re.compile(r"\\[^u]")
_LONE_SURROGATE = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
_ORJSON_BUFFER = 4096
_OPTIONS = 0 if orjson is None else orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


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
        raise InvalidTask("The body is not valid JSON", reason=str(error)[:200]) from error


def dumps(value: Any, *, otherwise: Callable[[Any], Any] = _refuse) -> bytes:
    """Return a value as the bytes of a compact JSON document; `otherwise` converts values of unsupported types.

    Raises:
        InvalidTask: when JSON cannot express the value.
        Exception: any error that `otherwise` raises.
    """
    if orjson is not None:
        try:
            written: bytes = orjson.dumps(value, option=_OPTIONS)
            if value is None or b"null" not in written or _agrees(value):
                return _compact(written)
        except TypeError:
            pass  # the definition decides, and gives the reason
    try:
        return _written(_plain(value, otherwise, MOST_LEVELS))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTask("The value cannot be written as JSON", reason=str(error)[:200]) from error


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


def _compact(written: bytes) -> bytes:
    """Return orjson's output in no more memory than its length: a copy if it is below 4 KiB, else itself.

    orjson shortens a buffer of 4 KiB in place. The rest of a buffer of which a few bytes are kept is of no use to the
    next buffer: ten thousand remembered results of `null` held 40 MB.
    """
    return bytes(memoryview(written)) if len(written) < _ORJSON_BUFFER else written


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


def _plain(value: Any, otherwise: Callable[[Any], Any], levels: int) -> Any:
    """Convert a value, with all values inside it, to None, bool, int, float, str, list and dict."""
    if levels < 0:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    if type(value) in _PLAIN:
        return value
    plain: Any
    match value:
        case str():
            plain = str.__str__(value)  # what is in it, whatever a subclass shows
        case int() | float():
            plain = _number(value)
        case Enum():
            plain = _plain(value.value, otherwise, levels)
        case dict():
            plain = {_key(key): _plain(one, otherwise, levels - 1) for key, one in value.items()}
        case list() | tuple():
            plain = [_plain(one, otherwise, levels - 1) for one in value]
        case UUID():
            plain = str(value)
        case _:
            plain = _plain(otherwise(value), otherwise, levels - 1)
    return plain


def _number(value: float) -> int | float:
    if isinstance(value, int):
        if not _LEAST <= value <= _MOST:
            raise ValueError("an integer has more than 64 bits")
        return int(value)
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    return float(value)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key is text, not {type(key).__name__}")
    return str.__str__(key)
