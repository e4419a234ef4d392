"""The bytes of a connection: frames of Coditect's channels are taken out, everything else goes on to aiormq.

Written frames are gathered and leave in one piece per turn of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable
from typing import Protocol

from coditect.broker.rabbitmq.frames.codec import METHOD, FrameParser, FramingError, Taken
from coditect.broker.rabbitmq.frames.readable import Readable

log = logging.getLogger(__name__)

HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
HEARTBEAT_SECONDS = 1.0
CONGESTED_BYTES = 4 * 1024 * 1024
"""The bytes in the transport's buffer from which publishes wait."""
_CONNECTION = 10
_BLOCKED, _UNBLOCKED = struct.pack(">HH", _CONNECTION, 60), struct.pack(">HH", _CONNECTION, 61)


class Streams(Protocol):
    """The part of aiormq's stream writer that is used."""

    @property
    def transport(self) -> asyncio.WriteTransport:
        """The asyncio transport below the writer."""

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport without waiting."""

    async def drain(self) -> None:
        """Wait while the transport's buffer is full."""


class Stream:
    """The bytes of one connection, both ways."""

    def __init__(self, writer: Streams, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self.open = True
        """Whether publishes need not wait, neither for an alarm's end nor for bytes to leave."""
        self._channels: dict[int, Taken] = {0: self}
        self._cutter = FrameParser(self._channels)
        self._readable = Readable()
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._torn = False
        self._passed_at = loop.time()

    # -- from the broker --------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bytes:
        """Return those of the arrived frames that are for aiormq, in a form that pamqp can decode.

        aiormq takes a connection for dead on which it sees nothing, so while all arriving frames are Coditect's own it
        is given a heartbeat once a second.
        """
        if self._torn:
            return b""
        try:
            passed = self._cutter.feed(chunk)
        except FramingError as error:
            self._torn = True
            log.error("The broker's stream cannot be read; the connection is given up", extra={"reason": str(error)})
            self._writer.transport.abort()
            return b""
        now = self._loop.time()
        if not passed and now - self._passed_at > HEARTBEAT_SECONDS:
            passed = HEARTBEAT_FRAME
        if passed:
            self._passed_at = now
            return self._readable.frames(passed)
        return passed

    def attach(self, number: int, channel: Taken) -> None:
        """Offer the frames with a channel number to the given channel from now on."""
        self._channels[number] = channel

    def detach(self, number: int, channel: Taken) -> None:
        """End `attach`; without effect when the number belongs to another channel by now."""
        if self._channels.get(number) is channel:
            del self._channels[number]

    def take(self, kind: int, payload: bytes) -> bool:
        """Watch the connection's own frames for alarms, and take none."""
        if kind == METHOD and payload.startswith(_BLOCKED):
            self._unblocked.clear()
            self.open = False
        elif kind == METHOD and payload.startswith(_UNBLOCKED):
            self._unblocked.set()
            self.open = not self.congested
        return False

    def take_message(self, data: bytes, at: int, header_at: int, channel: int) -> int:
        """Return 0: nothing is delivered on the connection itself."""
        return 0

    # -- to the broker ----------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether the broker has an alarm and stops publishes."""
        return not self._unblocked.is_set()

    @property
    def congested(self) -> bool:
        """Whether more bytes are written than the broker takes for now."""
        return self._gathered + self._writer.transport.get_write_buffer_size() > CONGESTED_BYTES

    async def unblocked(self) -> None:
        """Wait until the broker's alarm has ended."""
        await self._unblocked.wait()

    async def drained(self) -> None:
        """Wait until the transport takes more bytes.

        Raises:
            ConnectionError: when the connection is lost.
        """
        await asyncio.sleep(0)  # what was gathered leaves first
        await self._writer.drain()
        self.open = not (self.blocked or self.congested)

    def write(self, pieces: Iterable[bytes], *, size: int = 0) -> None:
        """Write whole frames, with bodies of `size` bytes, together with others of the same turn of the event loop."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces += pieces
        self._gathered += size
        if self._gathered > CONGESTED_BYTES:
            self.open = False

    def _flush(self) -> None:
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        if not self._writer.transport.is_closing():
            self._writer.write(b"".join(pieces))
            self.open = not (self.blocked or self.congested)
