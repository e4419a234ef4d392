"""JSON on the wire: UTF-8, no NaN or Infinity; orjson when it is installed, else the standard library."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from coditect.errors import InvalidTask

orjson: Any
try:
    import orjson
except ImportError:  # the `speed` extra is not installed
    orjson = None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def loads(body: bytes) -> Any:
    """The value of a JSON document.

    Raises: InvalidTask when it is not JSON, not UTF-8 or nested beyond the parser's limit.
    """
    try:
        if orjson is not None:
            return orjson.loads(body)
        return json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidTask("The body is not valid JSON", reason=str(error)[:200]) from error


def dumps(value: Any) -> bytes:
    """The value as a JSON document without spaces.

    Raises: InvalidTask when JSON cannot say it.
    """
    try:
        if orjson is not None:
            written: bytes = orjson.dumps(value)
            return written
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTask("The value cannot be written as JSON", reason=str(error)[:200]) from error
