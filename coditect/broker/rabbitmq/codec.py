"""The encoding of publishes and settlements as AMQP frames, and the parsing of incoming frames.

A frame is kind (1 byte), channel (2), size (4), payload, end (1). A message is a method frame, a header frame and as
many body frames as its size needs, none when it is empty.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Protocol

from coditect.broker.rabbitmq.fields import write_properties
from coditect.model.message import Message

METHOD, HEADER, BODY = 1, 2, 3
END = 0xCE
OVERHEAD = 8
"""The number of bytes of a frame beside its payload."""
_LARGEST_KIND = 8
"""The largest number of a frame kind, that of the heartbeat."""
_LARGEST_FRAME = 2**29
"""The largest size of a frame: RabbitMQ's limit of a message; a larger size means a broken stream."""

HEAD = struct.Struct(">BHI")
"""The layout of a frame's head: kind, channel, size of the payload."""
_END = b"\xce"
_SIZE = struct.Struct(">Q")
_TAG = struct.Struct(">Q?")
_BIT = struct.Struct(">QB")
_CONTENT_HEAD = struct.Struct(">BHIHHQ")
"""The layout of a header frame's first bytes: frame head, class, weight, size of the body."""
_CONTENT_BYTES = 12
_BODY_HEAD = struct.Struct(">BBHI")
"""The layout of the end byte of a header frame, followed by the head of a body frame."""
_HEADER_HEAD = struct.Struct(">BHI4xQ")
"""The layout by which a header frame's head is read, with the size of the body."""
_BASIC = 60
DELIVER, RETURN = struct.pack(">HH", _BASIC, 60), struct.pack(">HH", _BASIC, 50)
_ACK, _NACK = struct.pack(">HH", _BASIC, 80), struct.pack(">HH", _BASIC, 120)
_CONFIRMS = (_ACK, _NACK)
_FLOW, FLOW_OK = struct.pack(">HHB", 20, 20, 1), struct.pack(">HH", 20, 21)
CHANNEL_CLOSE = struct.pack(">HH", 20, 40)
CLOSING = (CHANNEL_CLOSE, struct.pack(">HH", 20, 41))
"""The methods `channel.close` and `channel.close-ok`, as class and method numbers."""
_PUBLISH = struct.pack(">HHH", _BASIC, 40, 0)
_MANDATORY = b"\x01"
_MULTIPLE, _REQUEUE = 1, 2
_LONGEST = 255


# -- writing --------------------------------------------------------------------------------------------------


class Settlement(Enum):
    """The way in which a delivery is settled: ack, requeue or reject."""

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"


ACK = Settlement.ACK
"""The settlement of almost every delivery, by a name of its own: a look-up in the enum takes 0.1 µs, three per task."""


@dataclass(frozen=True, slots=True)
class SettledRange:
    """An ack, requeue or reject to send: for one delivery tag, or with `multiple` for all unsettled ones up to it."""

    tag: int
    verdict: Settlement
    multiple: bool = False


def publish_frames(channel: int, message: Message, exchange: str, routing_key: str, *, frame_max: int) -> list[bytes]:
    """Return the frames of one `mandatory` publish in pieces, to be written in order with nothing between them.

    Raises:
        Exception: any of `UNSPEAKABLE`, for a message that AMQP cannot carry.
    """
    properties = write_properties(message)
    body = message.body
    size = len(body)
    content, most = _CONTENT_BYTES + len(properties), frame_max - OVERHEAD
    if content > most:
        raise ValueError("The properties and headers do not fit into one frame")
    head = _CONTENT_HEAD.pack(HEADER, channel, content, _BASIC, 0, size)
    method = _publish(channel, exchange, routing_key)
    if 0 < size <= most:
        return [method, head, properties, _BODY_HEAD.pack(END, BODY, channel, size), body, _END]
    pieces = [method, head, properties]
    for at in range(0, size, most):
        part = body[at : at + most]
        pieces += (_BODY_HEAD.pack(END, BODY, channel, len(part)), part)
    pieces.append(_END)
    return pieces


@lru_cache(maxsize=4096)
def _publish(channel: int, exchange: str, routing_key: str) -> bytes:
    payload = b"".join((_PUBLISH, _name(exchange), _name(routing_key), _MANDATORY))
    return HEAD.pack(METHOD, channel, len(payload)) + payload + _END


def _name(name: str) -> bytes:
    raw = name.encode()
    if len(raw) > _LONGEST:
        raise ValueError("An exchange's name or a routing key holds at most 255 bytes")
    return bytes((len(raw),)) + raw


def flow_frame(channel: int) -> bytes:
    """Return a `channel.flow` frame that leaves the flow unchanged, sent to see whether the broker answers."""
    return HEAD.pack(METHOD, channel, len(_FLOW)) + _FLOW + _END


def settle_frame(channel: int, settled: SettledRange) -> bytes:
    """Encode, for sending, the frame of an ack, or of a nack that requeues or rejects."""
    if settled.verdict is Settlement.ACK:
        payload = _ACK + _BIT.pack(settled.tag, _MULTIPLE if settled.multiple else 0)
    else:
        bits = (_MULTIPLE if settled.multiple else 0) | (_REQUEUE if settled.verdict is Settlement.REQUEUE else 0)
        payload = _NACK + _BIT.pack(settled.tag, bits)
    return HEAD.pack(METHOD, channel, len(payload)) + payload + _END


# -- reading --------------------------------------------------------------------------------------------------


class FramingError(Exception):
    """The error of incoming bytes that are no AMQP frames, or whose frames break the order or size of a message."""


class FrameSink(Protocol):
    """The interface of a receiver of one channel's frames, to which the parser offers each frame before aiormq."""

    def take(self, kind: int, payload: bytes) -> bool:
        """Consume a frame and return True, or return False to pass the frame on to aiormq.

        Raises:
            FramingError: for a frame that must not come here.
            Exception: any of `_MALFORMED`, for a frame that cannot be read.
        """

    def take_message(self, data: bytes, at: int, header_at: int, channel: int) -> int:
        """Consume a delivery's three frames in `data`, and return the offset after them; 0 when not consumed.

        The method frame begins at `at` and is complete, the next frame begins at `header_at`. By default nothing is
        consumed.
        """
        return 0


_MALFORMED = (ValueError, IndexError, struct.error)


class FrameParser:
    """The parser of incoming bytes, which may arrive in pieces split anywhere, into AMQP frames.

    The frames of `channels` are offered to these; all other frames are passed on whole.
    """

    def __init__(self, channels: Mapping[int, FrameSink]) -> None:
        self._channels = channels
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = OVERHEAD

    def feed(self, chunk: bytes) -> bytes:
        """Parse incoming bytes, and return the complete frames that no channel consumed, in order.

        Raises:
            FramingError: when the stream is broken and must be closed.
        """
        try:
            return self._cut(chunk)
        except _MALFORMED as error:
            raise FramingError(f"a frame cannot be read: {error!r}") from error

    def _cut(self, chunk: bytes) -> bytes:
        self._chunks.append(chunk)
        self._held += len(chunk)
        if self._held < self._needed:
            return b""
        data = chunk if len(self._chunks) == 1 else b"".join(self._chunks)
        end = len(data)
        at, kept, passed = 0, 0, []
        self._needed = OVERHEAD
        while end - at >= OVERHEAD:
            kind, channel, size = HEAD.unpack_from(data, at)
            after = at + OVERHEAD + size
            if kind > _LARGEST_KIND or (after <= end and data[after - 1] != END):
                raise FramingError(f"byte {at} of {end} begins no frame")
            if after > end:
                if size > _LARGEST_FRAME:
                    raise FramingError(f"a frame of {size} bytes")
                self._needed = after - at
                break
            taken = self._channels.get(channel)
            if taken is not None:
                behind = taken.take_message(data, at, after, channel) if data.startswith(DELIVER, at + 7) else 0
                if behind or taken.take(kind, data[at + 7 : after - 1]):
                    if kept < at:
                        passed.append(data[kept:at])
                    kept = after = behind or after
            at = after
        if kept < at:
            passed.append(data[kept:at])
        self._chunks = [data[at:]] if at < end else []
        self._held = end - at
        return passed[0] if len(passed) == 1 else b"".join(passed)


OnContent = Callable[[bytes, bytes, bytes], None]
"""A callback for a message: its method's arguments, its content header's payload, its body, all encoded."""


def read_deliver(method: bytes) -> tuple[bytes, int, bool, str, str]:
    """Decode a `basic.deliver` method: consumer tag, delivery tag, redelivered, exchange, routing key."""
    at = 1 + method[0]
    tag, redelivered = _TAG.unpack_from(method, at)
    exchange, routing_key = _where_from(method[at + 9 :])
    return method[1:at], tag, redelivered, exchange, routing_key


@lru_cache(maxsize=4096)
def _where_from(names: bytes) -> tuple[str, str]:
    """Decode the exchange and routing key of a message; bytes that are not UTF-8 become escapes."""
    at = 1 + names[0]
    key = names[at + 1 : at + 1 + names[at]]
    return names[1:at].decode(errors="backslashreplace"), key.decode(errors="backslashreplace")


def read_return(method: bytes) -> tuple[str, str]:
    """Decode the exchange and the routing key of a `basic.return` method, which begins with a code and its reason."""
    return _where_from(method[3 + method[2] :])


class ContentAssembler:
    """The reader of one channel's incoming frames: it calls back for delivery, returned message, confirm and close."""

    def __init__(
        self,
        *,
        delivered: OnContent | None = None,
        returned: OnContent | None = None,
        confirmed: Callable[[int, bool, bool], None] | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        """Take the optional functions to call for a delivery, a returned message, a confirm, and the channel's end.

        `confirmed` gets a publish's number, AMQP's flag `multiple`, and True for an ack, False for a nack.

        `closing` is called when the channel's end is read, before aiormq sees it: a frame that is written on this
        channel from then on may come behind `channel.close-ok`, for which the broker ends the connection.
        """
        self._wanted = {
            method: handler for method, handler in ((DELIVER, delivered), (RETURN, returned)) if handler is not None
        }
        self._confirmed = confirmed
        self._closing = closing
        self._handler: OnContent | None = None
        self._method = self._header = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self._begun = self._passes = False
        """Whether the current message's header was read, and whether its frames are passed on to aiormq."""

    def take(self, kind: int, payload: bytes) -> bool:
        """Consume a frame of a message or a confirm, as `FrameSink.take`; return False to pass it on."""
        if kind == METHOD:
            return self._take_method(payload)
        if self._passes or kind not in (HEADER, BODY):
            return False
        if self._handler is None or (kind == HEADER) is self._begun:
            raise FramingError(f"a frame of kind {kind} where none of it is due")
        if kind == HEADER:
            self._header, self._begun = payload, True
            self._missing = _SIZE.unpack_from(payload, 4)[0]
            if not self._missing:
                self._complete(b"")
        else:
            if len(payload) > self._missing:
                raise FramingError(f"a body of {len(payload)} bytes where {self._missing} are due")
            self._missing -= len(payload)
            self._parts.append(payload)
            if not self._missing:
                self._complete(b"".join(self._parts))  # of a single part, no copy
        return True

    def take_message(self, data: bytes, at: int, header_at: int, channel: int) -> int:
        """Consume a delivery of three frames at once, as `FrameSink.take_message`; 0 when it is not consumed."""
        handler = self._wanted.get(DELIVER)
        if handler is None or self._passes or self._handler is not None:
            return 0
        if len(data) < header_at + _HEADER_HEAD.size:
            return 0
        kind, its_channel, length, size = _HEADER_HEAD.unpack_from(data, header_at)
        body_at = header_at + OVERHEAD + length
        end: int = body_at + OVERHEAD + size
        if not size or kind != HEADER or its_channel != channel or end > len(data):
            return 0
        if _BODY_HEAD.unpack_from(data, body_at - 1) != (END, BODY, channel, size) or data[end - 1] != END:
            return 0
        handler(data[at + 11 : header_at - 1], data[header_at + 7 : body_at - 1], data[body_at + 7 : end - 1])
        return end

    def _take_method(self, payload: bytes) -> bool:
        """Consume a method frame, or return False; each method frame ends an incomplete message (AMQP 0-9-1, 4.2.6)."""
        method = payload[:4]
        self._handler = handler = self._wanted.get(method)
        self._begun = self._passes = False
        if self._parts:
            self._parts = []
        if handler is not None:
            self._method = payload[4:]
            return True
        if self._confirmed is not None and method in _CONFIRMS:
            tag, bits = _BIT.unpack_from(payload, 4)
            self._confirmed(tag, bool(bits & _MULTIPLE), method == _ACK)
            return True
        if self._closing is not None and method in CLOSING:
            self._closing()
        self._passes = True
        return False

    def _complete(self, body: bytes) -> None:
        handler, self._handler, self._begun = self._handler, None, False
        if self._parts:
            self._parts = []
        if handler is not None:
            handler(self._method, self._header, body)
