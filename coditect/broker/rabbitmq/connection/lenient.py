"""A lenient decoder of AMQP properties and headers, which replaces undecodable values instead of failing.

pamqp refuses a property that is not UTF-8, a time after the year 9999 and a table nested deeper than the interpreter's
stack; aiormq then drops the connection, the broker delivers the message again, and one foreign message stops a fleet.
pamqp itself stays as it is, for the program's other users of it: `frames/readable.py` keeps such bytes away from it.
Cutting values out of a large table costs the square of its size, too: a header of 128 kB can hold up the event loop for
1.5 s. So an undecodable or too large value is marked instead, and the reader of the message refuses it like any other
bad input.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pamqp import decode
from pamqp.commands import Basic

from coditect.wire.tasks import UNDECODABLE

MAX_TABLE_BYTES = 64 * 1024
"""The largest encoded size of a message's headers that is decoded; Coditect's own stay below it."""


class Undecodable(str):
    """A text that was not UTF-8, with an escape for each wrong byte."""

    __slots__ = ()


class LenientProperties(Basic.Properties):
    """AMQP properties whose decoder replaces the values that the library pamqp would refuse to decode."""

    def unmarshal(self, flags: int, data: bytes) -> None:
        """Decode the properties that the flags name, as pamqp does, but replace undecodable values."""
        for name in self.__slots__:
            if flags & self.flags[name]:
                size, value = _PROPERTIES[self.amqp_type(name)](data)
                setattr(self, name, value)
                data = data[size:]


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
        return _fields(value)
    except RecursionError:
        return 4 + size, marked("the headers are nested too deeply")
    except (ValueError, ArithmeticError, IndexError, struct.error) as error:
        return 4 + size, marked(f"the headers: {error}")


def embedded_value(value: bytes) -> tuple[int, Any]:
    """Decode one typed header value leniently; return how many bytes it takes, and the value; (0, None) if empty.

    Raises:
        ValueError, ArithmeticError, IndexError, RecursionError, struct.error: for bytes that cannot be decoded.
    """
    if not value:
        return 0, None
    decoder = _VALUES.get(value[:1])
    if decoder is None:
        raise ValueError(f"Unknown type: {value[:1]!r}")
    size, found = decoder(value[1:])
    return size + 1, found


def _fields(value: bytes) -> tuple[int, dict[str, Any]]:
    end, at = _end(value), 4
    found: dict[str, Any] = {}
    while at < end:
        behind = at + 1 + value[at]
        if behind > end:
            raise ValueError("the key length exceeds the table")
        name = value[at + 1 : behind].decode()
        size, found[name] = embedded_value(value[behind:])
        at = behind + size
    return end, found


def _array(value: bytes) -> tuple[int, list[Any]]:
    end, at = _end(value), 4
    found: list[Any] = []
    while at < end:
        size, one = embedded_value(value[at:])
        found.append(one)
        at += size
    return at, found


def _end(value: bytes) -> int:
    end = 4 + int(struct.unpack(">I", value[:4])[0])
    if end > len(value):
        raise ValueError("the length exceeds the bytes")
    return end


_PROPERTIES: dict[str, Callable[[bytes], tuple[int, Any]]] = {
    "shortstr": _short_text,
    "octet": decode.octet,
    "table": _table,
    "timestamp": _time,
}
_VALUES: dict[bytes, Callable[[bytes], tuple[int, Any]]] = {
    **decode.TABLE_MAPPING,
    b"A": _array,
    b"F": _fields,
    b"T": _time,
}


def marked(why: str) -> Mapping[str, str]:
    """Return the header that replaces undecodable headers, with the reason why they could not be decoded."""
    return {UNDECODABLE: why[:200]}
