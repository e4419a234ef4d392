"""The byte stream of a connection, shared by Coditect's own channels and aiormq, and the probe of a silent one.

Written frames are gathered and leave in one piece per turn of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from pamqp.header import ContentHeader

from coditect.broker.rabbitmq.channels import LOST, open_channel
from coditect.broker.rabbitmq.codec import (
    CHANNEL_CLOSE,
    CLOSING,
    DELIVER,
    FLOW_OK,
    HEAD,
    HEADER,
    METHOD,
    OVERHEAD,
    RETURN,
    FrameParser,
    FrameSink,
    FramingError,
    flow_frame,
)
from coditect.broker.rabbitmq.fields import HEADERS, MESSAGE_ID, read_message

log = logging.getLogger(__name__)

HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
HEARTBEAT_SECONDS = 1.0
CONGESTED_BYTES = 4 * 1024 * 1024
"""The number of unsent bytes above which publishes wait."""
_CONNECTION = 10
_BLOCKED, _UNBLOCKED = struct.pack(">HH", _CONNECTION, 60), struct.pack(">HH", _CONNECTION, 61)


class Stream(FrameSink):
    """The byte stream of one connection: takes Coditect's frames out of incoming bytes, writes frames in batches."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        drain: Callable[[], Awaitable[None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Take the transport to write to, and the function that waits while the transport's buffer is full."""
        self._transport = transport
        self._drain = drain
        self._loop = loop
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self.open = True
        """Whether publishes can be written now: there is no alarm, and the buffer is not full."""
        self._channels: dict[int, FrameSink] = {0: self}
        self._parser = FrameParser(self._channels)
        self._readable = Readable()
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._is_broken = False
        self._passed_at = loop.time()

    # -- from the broker --------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bytes:
        """Offer incoming frames to Coditect's channels, and return the other frames, readable for aiormq.

        aiormq takes a connection for dead when no frames arrive, so while all frames are Coditect's own, aiormq gets a
        heartbeat once a second.
        """
        if self._is_broken:
            return b""
        try:
            passed = self._parser.feed(chunk)
        except FramingError as error:
            self._is_broken = True
            log.error("The broker's stream cannot be read; the connection is given up", extra={"reason": str(error)})
            self._transport.abort()
            return b""
        now = self._loop.time()
        if not passed and now - self._passed_at > HEARTBEAT_SECONDS:
            passed = HEARTBEAT_FRAME
        if passed:
            self._passed_at = now
            return self._readable.frames(passed)
        return passed

    def attach(self, number: int, channel: FrameSink) -> None:
        """Offer the frames of a channel number to the given receiver from now on."""
        self._channels[number] = channel

    def detach(self, number: int, channel: FrameSink) -> None:
        """Stop offering the frames of a channel number to the receiver, unless another has replaced it."""
        if self._channels.get(number) is channel:
            del self._channels[number]

    def take(self, kind: int, payload: bytes) -> bool:
        """Read the broker's alarms from frames of channel 0, and pass all frames on."""
        if kind == METHOD and payload.startswith(_BLOCKED):
            self._unblocked.clear()
            self.open = False
        elif kind == METHOD and payload.startswith(_UNBLOCKED):
            self._unblocked.set()
            self.open = not self.congested
        return False

    # -- to the broker ----------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Tell whether the broker has an alarm and stops publishes."""
        return not self._unblocked.is_set()

    @property
    def congested(self) -> bool:
        """Tell whether more than 4 MiB (`CONGESTED_BYTES`) wait to be sent."""
        return self._gathered + self._transport.get_write_buffer_size() > CONGESTED_BYTES

    async def unblocked(self) -> None:
        """Wait until the broker's alarm has ended."""
        await self._unblocked.wait()

    async def drained(self) -> None:
        """Wait until the transport's buffer has room.

        Raises:
            ConnectionError: when the connection is lost.
        """
        await asyncio.sleep(0)  # what was gathered leaves first
        await self._drain()
        self.open = not (self.blocked or self.congested)

    def write(self, pieces: Iterable[bytes], *, size: int = 0) -> None:
        """Buffer whole frames, to be written together with all other frames of this turn of the event loop."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces += pieces
        self._gathered += size
        if self._gathered > CONGESTED_BYTES:
            self.open = False

    def _flush(self) -> None:
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        if not self._transport.is_closing():
            self._transport.write(b"".join(pieces))
            self.open = not (self.blocked or self.congested)


class LivenessProbe(FrameSink):
    """The test whether the broker answers on a silent connection: a `channel.flow`, on a channel of its own."""

    def __init__(self, connection: AbstractConnection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._channel: Channel | None = None
        self._answer: asyncio.Future[bool] | None = None

    async def open(self) -> None:
        """Open the probe's channel; raise one of `channels.LOST` on a lost connection."""
        self._channel = channel = await open_channel(self._connection)
        self._stream.attach(channel.number, self)
        channel.closing.add_done_callback(partial(self._lose, channel))

    def send(self) -> asyncio.Future[bool]:
        """Send a probe, unless an earlier one is still open, and return the future of the answer.

        The future is canceled when the channel is lost; the next probe opens a new channel.
        """
        if self._answer is None or self._answer.done():
            loop = asyncio.get_running_loop()
            if self._channel is not None and self._channel.is_closed:
                self._lose(self._channel)
            if self._channel is None:
                self._answer = loop.create_task(self._opened(), name="probe the broker")
            else:
                self._answer = loop.create_future()
                self._stream.write([flow_frame(self._channel.number)])
        return self._answer

    async def _opened(self) -> bool:
        try:
            await self.open()
        except LOST as error:
            log.debug("A silent connection does not answer", extra={"reason": repr(error)})
            return False
        return True

    def take(self, kind: int, payload: bytes) -> bool:
        """Consume the answer, `channel.flow-ok`; pass other frames on, and cancel the probe at `channel.close`."""
        if kind == METHOD and self._channel is not None and payload.startswith(CLOSING):
            self._lose(self._channel)
        if kind != METHOD or not payload.startswith(FLOW_OK):
            return False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(True)
        return True

    def _lose(self, channel: Channel, _: object = None) -> None:
        """Cancel the wait for the broker's answer when its channel is lost; ignore a channel replaced already."""
        if self._channel is not channel:
            return
        self._channel = None
        self._stream.detach(channel.number, self)
        if self._answer is not None:
            self._answer.cancel()


# The translation of frames for aiormq into a form that its decoder pamqp cannot refuse.
#
# aiormq decodes each frame with pamqp, and a value that pamqp refuses ends the connection. So a message's content
# header goes through aiormq packed: as a header table with one value, the original bytes, which `read_message` decodes
# later.

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
    """Return the original payload of a content header that `pack` made, or encode a header that came by another way."""
    properties: Any = header.properties
    original = (properties.headers or {}).get(_PACKED)
    return bytes(original) if isinstance(original, bytes | bytearray) else header.marshal()


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
