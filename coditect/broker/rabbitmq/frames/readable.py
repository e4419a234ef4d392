"""The translation of frames for aiormq into a form that its decoder pamqp cannot refuse.

aiormq decodes each frame with pamqp, and a value that pamqp refuses ends the connection. So a message's content header
goes through aiormq packed: as a header table with one value, the original bytes, which `read_message` decodes later.
"""

from __future__ import annotations

import struct
from typing import Any

from pamqp.header import ContentHeader

from coditect.broker.rabbitmq.frames.codec import CHANNEL_CLOSE, DELIVER, HEAD, HEADER, METHOD, OVERHEAD, RETURN
from coditect.broker.rabbitmq.frames.fields import HEADERS, MESSAGE_ID, read_message

_GET_OK = struct.pack(">HH", 60, 71)
_CONNECTION_CLOSE = struct.pack(">HH", 10, 50)
_TEXTS = {DELIVER: (4, 9, 0), _GET_OK: (13, 0), RETURN: (6, 0, 0), CHANNEL_CLOSE: (6,), _CONNECTION_CLOSE: (6,)}
"""The methods with texts that may not be UTF-8, each with the number of bytes before each text."""
_TAG_BYTES = 14
"""The bytes of a delivery's method before exchange and routing key, without the consumer tag."""
_LONGEST_TEXT = 255
_PACKED = "packed"
_CONTENT_BYTES = 12
_NAME_AND_KIND = bytes((len(_PACKED),)) + _PACKED.encode() + b"x"
_TABLE = struct.Struct(f">HI{len(_NAME_AND_KIND)}sI")
"""The layout of a packed header: flags, size of the table, and name, kind and size of its only value."""
_FLAGS = struct.Struct(">H")


class Readable:
    """The translator of one connection's frames into frames that aiormq's decoder pamqp accepts."""

    def __init__(self) -> None:
        self._returning: set[int] = set()
        """The numbers of the channels on which the header of a returned message comes next."""

    def frames(self, frames: bytes) -> bytes:
        """Return the given whole frames, with a decodable frame in place of each one that pamqp might refuse."""
        at, kept = 0, 0
        pieces: list[bytes] = []
        while at < len(frames):
            kind, channel, size = HEAD.unpack_from(frames, at)
            after = at + OVERHEAD + size
            if kind in (METHOD, HEADER):
                payload = frames[at + 7 : after - 1]
                readable = self._method(channel, payload) if kind == METHOD else self._header(channel, payload)
                if readable is not payload:
                    pieces += (frames[kept:at], HEAD.pack(kind, channel, len(readable)), readable)
                    kept = after - 1  # the end of the frame
            at = after
        return b"".join((*pieces, frames[kept:])) if pieces else frames

    def _method(self, channel: int, payload: bytes) -> bytes:
        before = _TEXTS.get(payload[:4])
        if before is None or (payload.startswith(DELIVER) and payload[_TAG_BYTES + payload[4] :].isascii()):
            return payload  # a consumer's tag is our own
        if payload.startswith(RETURN):
            self._returning.add(channel)
        return _decodable(payload, before)

    def _header(self, channel: int, payload: bytes) -> bytes:
        if channel not in self._returning:
            return pack(payload)
        self._returning.discard(channel)
        name = (read_message(payload, b"").message_id or "").encode()  # by which aiormq finds the publish
        return payload[:_CONTENT_BYTES] + _FLAGS.pack(MESSAGE_ID) + bytes((len(name),)) + name


def pack(payload: bytes) -> bytes:
    """Return a content header's payload that aiormq can always decode: its only value is the original payload."""
    size = len(payload)
    table = _TABLE.size - _FLAGS.size - 4 + size
    return payload[:_CONTENT_BYTES] + _TABLE.pack(HEADERS, table, _NAME_AND_KIND, size) + payload


def packed(header: ContentHeader) -> bytes:
    """Return the original payload of a content header that `pack` made and aiormq decoded."""
    properties: Any = header.properties
    return bytes(properties.headers[_PACKED])


def _decodable(payload: bytes, before: tuple[int, ...]) -> bytes:
    """Return a method's payload in which texts that are not UTF-8 are escaped; unchanged when all texts are UTF-8."""
    pieces: list[bytes] = []
    at, wrong = 0, False
    try:
        for skipped in before:
            text_at = at + skipped + 1
            end = text_at + payload[text_at - 1]
            text = payload[text_at:end]
            try:
                text.decode()
            except UnicodeDecodeError:
                wrong = True
                escaped = text.decode(errors="backslashreplace").encode()[:_LONGEST_TEXT]
                text = escaped.decode(errors="ignore").encode()
            pieces += (payload[at : text_at - 1], bytes((len(text),)), text)
            at = end
    except IndexError:
        return payload  # cut off; pamqp says so
    return b"".join((*pieces, payload[at:])) if wrong else payload
