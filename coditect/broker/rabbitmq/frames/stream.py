"""One connection's bytes: the frames of our channels are taken out, everything else goes on to aiormq.

What we write is gathered and leaves in one piece per turn of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable
from typing import Protocol

from coditect.broker.rabbitmq.frames.codec import METHOD, FrameParser, FramingError, Taken

log = logging.getLogger(__name__)

HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
HEARTBEAT_SECONDS = 1.0
CONGESTED_BYTES = 4 * 1024 * 1024
"""More than this in the transport's buffer, and publishes wait."""
_CONNECTION = 10
_BLOCKED, _UNBLOCKED = struct.pack(">HH", _CONNECTION, 60), struct.pack(">HH", _CONNECTION, 61)


class Streams(Protocol):
    """What the library's stream writer offers."""

    @property
    def transport(self) -> asyncio.WriteTransport:
        """Below it."""

    def write(self, data: bytes) -> None:
        """Hands bytes to the transport."""

    async def drain(self) -> None:
        """Waits while the transport's buffer is full."""


class Stream:
    """The bytes of one connection, both ways."""

    def __init__(self, writer: Streams, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self.open = True
        """Whether publishes need not wait: neither for an alarm's end nor for bytes to leave."""
        self._channels: dict[int, Taken] = {0: self}
        self._cutter = FrameParser(self._channels)
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._torn = False
        self._passed_at = loop.time()

    # -- from the broker --------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bytes:
        """What of this chunk is aiormq's.

        aiormq takes a connection for dead on which it sees nothing, so while everything that arrives is ours
        it is given a heartbeat once a second.
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
        return passed

    def attach(self, number: int, channel: Taken) -> None:
        """From now on this channel's frames are offered to it."""
        self._channels[number] = channel

    def detach(self, number: int, channel: Taken) -> None:
        """Not any more; does nothing when the number is somebody else's by now."""
        if self._channels.get(number) is channel:
            del self._channels[number]

    def take(self, kind: int, payload: bytes) -> bool:
        """Listens to the connection's own frames and takes none."""
        if kind == METHOD and payload.startswith(_BLOCKED):
            self._unblocked.clear()
            self.open = False
        elif kind == METHOD and payload.startswith(_UNBLOCKED):
            self._unblocked.set()
            self.open = not self.congested
        return False

    def take_message(self, data: bytes, at: int, header_at: int, channel: int) -> int:
        """Nothing is delivered on the connection itself."""
        return 0

    # -- to the broker ----------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether the broker has told us to stop publishing."""
        return not self._unblocked.is_set()

    @property
    def congested(self) -> bool:
        """Whether more is written than the broker takes for now."""
        return self._gathered + self._writer.transport.get_write_buffer_size() > CONGESTED_BYTES

    async def unblocked(self) -> None:
        """Waits for the alarm's end."""
        await self._unblocked.wait()

    async def drained(self) -> None:
        """Waits until the transport takes more. Raises ConnectionError when it is lost."""
        await asyncio.sleep(0)  # what was gathered leaves first
        await self._writer.drain()
        self.open = not (self.blocked or self.congested)

    def write(self, pieces: Iterable[bytes], *, size: int = 0) -> None:
        """Whole frames of about this size; they leave with everything else of this turn of the event loop."""
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
