"""The byte stream of a connection, shared by Coditect's own channels and aiormq.

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
"""The number of unsent bytes above which publishes wait."""
_CONNECTION = 10
_BLOCKED, _UNBLOCKED = struct.pack(">HH", _CONNECTION, 60), struct.pack(">HH", _CONNECTION, 61)


class Streams(Protocol):
    """The part of asyncio's stream writer that `Stream` uses."""

    @property
    def transport(self) -> asyncio.WriteTransport:
        """The asyncio transport below the writer."""

    def write(self, data: bytes) -> None:
        """Write bytes to the transport's buffer without waiting."""

    async def drain(self) -> None:
        """Wait while the transport's buffer is full."""


class Stream:
    """The byte stream of one connection: takes Coditect's frames out of incoming bytes, writes frames in batches."""

    def __init__(self, writer: Streams, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self.open = True
        """Whether publishes can be written now: there is no alarm, and the buffer is not full."""
        self._channels: dict[int, Taken] = {0: self}
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
        """Offer the frames of a channel number to the given receiver from now on."""
        self._channels[number] = channel

    def detach(self, number: int, channel: Taken) -> None:
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

    def take_message(self, data: bytes, at: int, header_at: int, channel: int) -> int:
        """Return 0, since no delivery comes on channel 0."""
        return 0

    # -- to the broker ----------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Tell whether the broker has an alarm and stops publishes."""
        return not self._unblocked.is_set()

    @property
    def congested(self) -> bool:
        """Tell whether more than 4 MiB (`CONGESTED_BYTES`) wait to be sent."""
        return self._gathered + self._writer.transport.get_write_buffer_size() > CONGESTED_BYTES

    async def unblocked(self) -> None:
        """Wait until the broker's alarm has ended."""
        await self._unblocked.wait()

    async def drained(self) -> None:
        """Wait until the transport's buffer has room.

        Raises:
            ConnectionError: when the connection is lost.
        """
        await asyncio.sleep(0)  # what was gathered leaves first
        await self._writer.drain()
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
        if not self._writer.transport.is_closing():
            self._writer.write(b"".join(pieces))
            self.open = not (self.blocked or self.congested)
