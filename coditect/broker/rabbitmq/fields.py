"""The encoding and fast decoding of a message's AMQP properties and headers.

An unusual part (a rare type of value, text that is not UTF-8, a table that is too large) is given to a lenient decoder.
pamqp refuses a property that is not UTF-8, a time after the year 9999 and a table nested deeper than the interpreter's
stack; aiormq then drops the connection, the broker delivers the message again, and one foreign message stops a fleet.
pamqp itself stays as it is, for the program's other users of it: `stream` keeps such bytes away from it.
Cutting values out of a large table costs the square of its size, too: a header of 128 kB can hold up the event loop for
1.5 s. So an undecodable or too large value is marked instead, and the reader of the message refuses it like any other
bad input.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from pamqp import decode, encode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from coditect.model.message import JSON, NO_HEADERS, HeaderTable, Message, SharedHeaders, TemplateHeaders
from coditect.wire.tasks import PUBLISHED_AT, UNDECODABLE

PERSISTENT = 2
UNSPEAKABLE = (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""The error types for a property or header that AMQP cannot carry; nothing was sent then."""
_LENGTH = struct.Struct(">I")
_LONG = struct.Struct(">q")
_INT = struct.Struct(">i")
_FLAGS = struct.Struct(">H")
_OCTETS = tuple(bytes((n,)) for n in range(256))
_TEXT, _BIG, _NUMBER, _TRUE_OR_FALSE, _TINY = b"SlItb"
_LONGEST_NAME = 255
_LARGEST_UNSIGNED = 2**32 - 1
_REPEATED = 32
"""The length up to which the encoding of a header's text is cached; a task's id has 36 characters."""
_PROPERTIES_AT = 12
"""The offset of the properties in a content header, behind class, weight and body size."""

CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
PRIORITY, CORRELATION_ID, REPLY_TO, EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
MESSAGE_ID, TIMESTAMP, TYPE, USER_ID, APP_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3
_RARE = CONTENT_ENCODING | PRIORITY | TIMESTAMP | USER_ID | 0b111
"""The flags of properties that Coditect's messages rarely have, which the lenient decoder reads."""


_ORDINARY = CONTENT_TYPE | HEADERS
_BEGINS_A_TASK = b"".join(
    (
        _OCTETS[len(JSON)] + JSON.encode(),
        _LENGTH.pack(len(PUBLISHED_AT) + 2 + _LONG.size),
        _OCTETS[len(PUBLISHED_AT)] + PUBLISHED_AT.encode() + b"l",
    )
)
"""The first bytes of most tasks' properties: JSON, and the publication instant as the only header."""


class _Unusual(ValueError):
    """The error of a header or property that the fast decoder cannot decode, so that the lenient decoder is used."""


_UNREADABLE = (ValueError, ArithmeticError, IndexError, KeyError, RecursionError, struct.error)


# -- reading --------------------------------------------------------------------------------------------------


def read_message(header: bytes, body: bytes) -> Message:
    """Decode a content header's payload and a body into a message; never raises."""
    try:
        return _read(header, body)
    except _UNREADABLE:
        return _read_with_care(header, body)


def _read_with_care(header: bytes, body: bytes) -> Message:
    content = ContentHeader(properties=LenientProperties())
    try:
        content.unmarshal(header)
    except _UNREADABLE as error:
        return Message(body, marked(f"the properties: {error}"))
    return from_properties(content.properties, body)


def _read(header: bytes, body: bytes) -> Message:  # noqa: C901, PLR0912 - one flag after the other, as sent
    flags: int = _FLAGS.unpack_from(header, _PROPERTIES_AT)[0]
    if flags & _RARE:
        raise _Unusual
    at = _PROPERTIES_AT + 2
    headers: HeaderTable = NO_HEADERS
    content_type = correlation_id = reply_to = expiration = message_id = type_ = app_id = None
    if flags & _ORDINARY == _ORDINARY and header.startswith(_BEGINS_A_TASK, at):
        at += len(_BEGINS_A_TASK) + _LONG.size
        content_type, headers = JSON, {PUBLISHED_AT: _LONG.unpack_from(header, at - _LONG.size)[0]}
    else:
        if flags & CONTENT_TYPE:
            end = at + 1 + header[at]
            content_type, at = text(header[at + 1 : end]), end
        if flags & HEADERS:
            headers, at = read_table(header, at)
    if flags & DELIVERY_MODE:
        at += 1
    if flags & CORRELATION_ID:
        end = at + 1 + header[at]
        correlation_id, at = header[at + 1 : end].decode(), end
    if flags & REPLY_TO:
        end = at + 1 + header[at]
        reply_to, at = text(header[at + 1 : end]), end
    if flags & EXPIRATION:  # a request to the control plane expires when nobody waits for its answer any more
        end = at + 1 + header[at]
        if not header[at + 1 : end].isdigit():
            raise _Unusual
        expiration, at = int(header[at + 1 : end]), end
    if flags & MESSAGE_ID:
        end = at + 1 + header[at]
        message_id, at = header[at + 1 : end].decode(), end
    if flags & TYPE:
        end = at + 1 + header[at]
        type_, at = text(header[at + 1 : end]), end
    if flags & APP_ID:
        end = at + 1 + header[at]
        app_id, at = text(header[at + 1 : end]), end
    if at != len(header):
        raise _Unusual
    return Message(
        body,
        headers or NO_HEADERS,
        message_id or None,
        correlation_id or None,
        reply_to or None,
        type_ or None,
        content_type or None,
        expiration,
        app_id or None,
    )


@lru_cache(maxsize=4096)
def text(raw: bytes) -> str:
    """Decode a UTF-8 text, with a cache for texts that many messages share.

    Raises:
        ValueError: when the text is not UTF-8.
    """
    return raw.decode()


def read_table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    """Decode the header table that begins at `at`, and return it with the offset of its end.

    Raises:
        ValueError, IndexError, struct.error: for a table that the lenient decoder must read.
    """
    size: int = _LENGTH.unpack_from(data, at)[0]
    at += 4
    end = at + size
    if size > MAX_TABLE_BYTES or end > len(data):
        raise _Unusual
    table: dict[str, Any] = {}
    while at < end:
        behind = at + 1 + data[at]
        name, kind = text(data[at + 1 : behind]), data[behind]
        at = behind + 1
        value: Any
        if kind == _TEXT:
            behind = at + 4 + _LENGTH.unpack_from(data, at)[0]
            value, at = data[at + 4 : behind].decode(), behind
        elif kind == _BIG:
            value, at = _LONG.unpack_from(data, at)[0], at + 8
        elif kind == _TINY:
            value, at = data[at] - ((data[at] & 0x80) << 1), at + 1
        elif kind == _NUMBER:
            value, at = _INT.unpack_from(data, at)[0], at + 4
        elif kind == _TRUE_OR_FALSE:
            value, at = data[at] != 0, at + 1
        else:
            consumed, value = embedded_value(data[behind:end])
            at = behind + consumed
        table[name] = value
    if at != end:
        raise _Unusual
    return table, end


# -- writing --------------------------------------------------------------------------------------------------


def write_properties(message: Message) -> bytes:
    """Encode a message's property flags, properties and headers, always as persistent.

    The bytes are the same as pamqp's, except that the headers keep their order where pamqp sorts them.

    Raises:
        Exception: any of `UNSPEAKABLE`, for a message that AMQP cannot carry.
    """
    headers = message.headers
    if type(headers) is not TemplateHeaders or not message.correlation_id:
        return _write(message)
    if message.reply_to or message.message_id or message.expiration_ms is not None:
        return _write(message)
    return _filled_in(message, headers)


def _write(message: Message) -> bytes:
    flags, parts = DELIVERY_MODE, []
    if message.content_type:
        flags |= CONTENT_TYPE
        parts.append(_short_shared(message.content_type))
    if message.headers:
        flags |= HEADERS
        table = _items(message.headers)
        parts += (_LENGTH.pack(len(table)), table)
    parts.append(_OCTETS[PERSISTENT])
    if message.correlation_id:
        flags |= CORRELATION_ID
        parts.append(_short(message.correlation_id))
    if message.reply_to:
        flags |= REPLY_TO
        parts.append(_short_shared(message.reply_to))
    if message.expiration_ms is not None:
        flags |= EXPIRATION
        parts.append(_short(str(message.expiration_ms)))
    if message.message_id:
        flags |= MESSAGE_ID
        parts.append(_short(message.message_id))
    if message.type:
        flags |= TYPE
        parts.append(_short_shared(message.type))
    if message.app_id:
        flags |= APP_ID
        parts.append(_short_shared(message.app_id))
    return _FLAGS.pack(flags) + b"".join(parts)


def _filled_in(message: Message, headers: TemplateHeaders) -> bytes:
    """Encode a message's properties from bytes that are cached for many messages, and the message's own values."""
    before, shared, behind = _template(headers.shared, message.content_type, message.type, message.app_id)
    own = _items(headers.own)
    size = _LENGTH.pack(len(shared) + len(own))
    return b"".join((before, size, shared, own, _OCTETS[PERSISTENT], _short(message.correlation_id or ""), behind))


@lru_cache(maxsize=4096)
def _template(
    headers: SharedHeaders, content_type: str | None, type_: str | None, app_id: str | None
) -> tuple[bytes, bytes, bytes]:
    """Encode the properties that many messages share: the bytes before the headers, the shared headers, the rest.

    A message's own headers and correlation id are put before the rest.
    """
    flags = DELIVERY_MODE | HEADERS | CORRELATION_ID
    before = behind = b""
    if content_type:
        flags, before = flags | CONTENT_TYPE, _short(content_type)
    if type_:
        flags, behind = flags | TYPE, _short(type_)
    if app_id:
        flags, behind = flags | APP_ID, behind + _short(app_id)
    return _FLAGS.pack(flags) + before, _items(headers), behind


def _short(value: str) -> bytes:
    raw = value.encode()
    if len(raw) > 255:
        raise ValueError("A property holds at most 255 bytes")
    return _OCTETS[len(raw)] + raw


_short_shared = lru_cache(maxsize=4096)(_short)


def _items(headers: HeaderTable) -> bytes:
    parts: list[bytes] = []
    for name, value in headers.items():
        kind = type(value)
        if kind is str:
            if len(value) <= _REPEATED:
                parts.append(_item(name, value))
            else:
                raw = value.encode()
                parts.append(_text_head(name, len(raw)) + raw)
        elif kind is int:
            parts.append(
                _long_head(name) + _LONG.pack(value) if value > _LARGEST_UNSIGNED else _name(name) + _small(value)
            )
        else:
            parts.append(_name(name) + encode.encode_table_value(sendable(value)))
    return b"".join(parts)


@lru_cache(maxsize=4096)
def _item(name: str, value: str) -> bytes:
    """Encode a header with a short text as value (at most 32 characters), with a cache of the encoded bytes."""
    raw = value.encode()
    return _text_head(name, len(raw)) + raw


@lru_cache(maxsize=4096)
def _text_head(name: str, size: int) -> bytes:
    return b"".join((_name(name), b"S", _LENGTH.pack(size)))


@lru_cache(maxsize=4096)
def _long_head(name: str) -> bytes:
    return _name(name) + b"l"


@lru_cache(maxsize=4096)
def _name(name: str) -> bytes:
    raw = name.encode()
    if len(raw) > _LONGEST_NAME:
        raise ValueError("A header's name holds at most 255 bytes")
    return _OCTETS[len(raw)] + raw


_small = lru_cache(maxsize=4096)(encode.table_integer)


def sendable(value: Any) -> Any:
    """Return a header value in types that pamqp can write: bytes as a byte array, tuples as lists, the rest as is.

    Raises:
        Exception: any of `UNSPEAKABLE`, for a value that AMQP cannot carry.
    """
    if isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, list | tuple):
        return [sendable(item) for item in value]
    if isinstance(value, Mapping):
        return {name: sendable(item) for name, item in value.items()}
    return value


_TEXTS = ("message_id", "correlation_id", "reply_to", "type", "content_type", "app_id")
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
        size, item = embedded_value(value[at:])
        found.append(item)
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


def from_properties(properties: Basic.Properties, body: bytes) -> Message:
    """Convert AMQP properties and a body into a message; an expiration that is no number is dropped.

    A property that is not UTF-8 is left out and named in the header `x-coditect-undecodable`.
    """
    expiration = properties.expiration
    message = Message(
        body=body,
        headers=properties.headers or NO_HEADERS,
        message_id=properties.message_id or None,
        correlation_id=properties.correlation_id or None,
        reply_to=properties.reply_to or None,
        type=properties.message_type or None,
        content_type=properties.content_type or None,
        expiration_ms=int(expiration) if expiration and expiration.isdecimal() else None,
        app_id=properties.app_id or None,
    )
    wrong = [name for name in _TEXTS if isinstance(getattr(message, name), Undecodable)]
    if not wrong:
        return message
    left_out: dict[str, Any] = dict.fromkeys(wrong)
    mark = marked(f"not UTF-8: {', '.join(wrong)}")
    return replace(message, headers={**message.headers, **mark}, **left_out)
