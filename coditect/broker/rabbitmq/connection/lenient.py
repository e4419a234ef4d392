"""A lenient decoder of properties and headers from other programs, which never ends a connection.

pamqp refuses a property that is not UTF-8, a time after the year 9999 and a table nested deeper than the interpreter's
stack; aiormq then drops the connection, the broker delivers the message again, and one foreign message stops a fleet.
Cutting values out of a large table costs the square of its size, too: a header of 128 kB can hold up the event loop for
1.5 s. So an undecodable or too large value is marked instead, and the reader of the message refuses it like any other
bad input.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pamqp import decode

from coditect.wire.tasks import UNDECODABLE

MAX_TABLE_BYTES = 64 * 1024
"""The largest size of all headers together, encoded; Coditect's own stay below it."""


class Undecodable(str):
    """A text that was not UTF-8; each wrong byte is written as an escape."""

    __slots__ = ()


def read_leniently() -> None:
    """Replace pamqp's decoders of texts, tables and times by lenient ones, for the whole process; idempotent.

    The table belongs to the process, so other users of pamqp in it read leniently, too.
    """
    decode.METHODS["shortstr"] = _short_text
    decode.METHODS["table"] = _table
    decode.METHODS["timestamp"] = _time
    decode.TABLE_MAPPING[b"T"] = _time


def _short_text(value: bytes) -> tuple[int, str]:
    try:
        return decode.short_str(value)
    except UnicodeDecodeError:
        end = 1 + value[0]
        return end, Undecodable(value[1:end].decode(errors="backslashreplace"))


def _time(value: bytes) -> tuple[int, datetime | int]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, int(struct.unpack(">Q", value[:8])[0])


def _table(value: bytes) -> tuple[int, Any]:
    size = int(struct.unpack(">I", value[:4])[0])
    if size > MAX_TABLE_BYTES:
        return 4 + size, marked(f"the headers have {size} bytes, the limit is {MAX_TABLE_BYTES}")
    try:
        return decode.field_table(value)
    except RecursionError:
        return 4 + size, marked("the headers are nested too deeply")
    except (ValueError, ArithmeticError) as error:
        return 4 + size, marked(f"the headers: {error}")


def marked(why: str) -> Mapping[str, str]:
    """Return the headers that stand for undecodable ones."""
    return {UNDECODABLE: why[:200]}
