"""A TCP proxy between a process and a server that injects network faults.

Every accepted connection is a `Pipe`. A fault applies to the path of all pipes, future ones included, or to one pipe:
the purpose of a broker connection is read from its name in the handshake, so a test can hit the publishing one alone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

from yarl import URL

from coditect.aio.network import BOTH, NetworkPath, Way

CHUNK_BYTES = 65_536
HANDSHAKE_BYTES = 4_096
PROTOCOL_HEADER_BYTES, FRAME_BYTES = 8, 8
CONNECTION = 10
TUNE_OK = (CONNECTION, 31)
NO_LINGER = struct.pack("ii", 1, 0)


class Pipe:
    """A connection through the proxy, with the faults that act on each direction."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._writers = {Way.TO_SERVER: server, Way.TO_CLIENT: client}
        self._swallowed: set[Way] = set()
        self._left: dict[Way, int] = {}
        self._last: set[Way] = set()
        self._handshake = b""

    def is_for(self, word: bytes) -> bool:
        """Tell whether the client's first bytes contain a word, such as the connection's name."""
        return word in self._handshake

    @property
    def calls(self) -> list[tuple[int, int]]:
        """The AMQP methods in the client's first bytes, as class and method number, without those of the handshake."""
        return [method for method, _ in self._methods() if method[0] != CONNECTION]

    @property
    def heartbeats(self) -> list[int]:
        """The heartbeat in seconds that the client accepted by AMQP's `tune-ok`, as a list; empty before `tune-ok`."""
        return [struct.unpack_from(">HIH", body)[2] for method, body in self._methods() if method == TUNE_OK]

    def _methods(self) -> Iterator[tuple[tuple[int, int], bytes]]:
        """Yield each AMQP method in the client's first bytes, as class and method number, with its arguments."""
        at, said = PROTOCOL_HEADER_BYTES, self._handshake
        while at + FRAME_BYTES + 4 <= len(said):
            kind, _, size = struct.unpack_from(">BHI", said, at)
            if kind == 1 and at + FRAME_BYTES + size <= len(said):
                yield struct.unpack_from(">HH", said, at + 7), said[at + 11 : at + 7 + size]
            at += FRAME_BYTES + size

    def swallow(self, *ways: Way) -> None:
        """Drop all bytes of the given directions from now on."""
        self._swallowed.update(ways)

    def half_open(self) -> None:
        """Reset the connection to the server (RST) and drop all bytes from then on; the client notices nothing."""
        self.swallow(*BOTH)
        _reset(self._writers[Way.TO_SERVER])

    def cut(self) -> None:
        """Reset the connections to the client and to the server at once (RST)."""
        for writer in self._writers.values():
            _reset(writer)

    def cut_after(self, way: Way, count: int) -> None:
        """Let `count` more bytes through in a direction, then reset both connections."""
        self._left[way] = count

    def finish_with_next(self, way: Way) -> None:
        """Let one more chunk through in a direction, with the end of the stream (FIN) directly behind it."""
        self._last.add(way)

    async def forward(self, way: Way, chunk: bytes) -> None:
        """Write a chunk to the other side, as far as the faults of its direction let it through."""
        if way is Way.TO_SERVER and len(self._handshake) < HANDSHAKE_BYTES:
            self._handshake += chunk
        if way in self._swallowed:
            return
        left = self._left.get(way)
        writer = self._writers[way]
        writer.write(chunk if left is None else chunk[:left])
        if way in self._last:
            writer.write_eof()
            self._swallowed.add(way)
        if left is not None:
            self._left[way] = left - len(chunk)
            if self._left[way] <= 0:
                await _flush(writer)
                self.cut()
        await writer.drain()

    def finish(self, way: Way) -> None:
        """Close the connection that a direction writes to, unless the direction's bytes are dropped."""
        writer = self._writers[way]
        if way not in self._swallowed and not writer.is_closing():
            writer.close()

    def silent(self, way: Way) -> bool:
        """Tell whether the bytes of a direction are dropped."""
        return way in self._swallowed


class FaultProxy:
    """A TCP proxy between processes and a server that can delay, slow down or cut the connections."""

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        self._pipes: dict[Pipe, asyncio.Task[None]] = {}
        self.ever: list[Pipe] = []
        """Every connection that the proxy has accepted so far, closed ones included."""
        self.path = NetworkPath()
        """The simulated path of all bytes; while it is cut, new connections are accepted and not answered."""
        self.port = 0

    @property
    def url(self) -> str:
        """The URL by which clients reach the server through the proxy."""
        return str(self._target.with_host("127.0.0.1").with_port(self.port))

    def pipes(self, word: bytes = b"") -> list[Pipe]:
        """Return the proxy's open connections whose client sent `word` in its first bytes; by default all of them."""
        return [pipe for pipe in self._pipes if pipe.is_for(word)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect an accepted client to the server, and pass bytes on until both directions have ended."""
        try:
            there = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            _reset(writer)
            return
        pipe = Pipe(writer, there[1])
        self.ever.append(pipe)
        self._pipes[pipe] = asyncio.ensure_future(self._pump_both(pipe, reader, there[0]))
        try:
            await self._pipes[pipe]
        finally:
            del self._pipes[pipe]
            pipe.cut()

    async def _pump_both(self, pipe: Pipe, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        async with asyncio.TaskGroup() as ways:
            ways.create_task(self._pump(pipe, client, Way.TO_SERVER))
            ways.create_task(self._pump(pipe, server, Way.TO_CLIENT))

    async def _pump(self, pipe: Pipe, reader: asyncio.StreamReader, way: Way) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self.path.travel(way)
                await pipe.forward(way, chunk)
        await self.path.travel(way)
        pipe.finish(way)

    async def close(self) -> None:
        """Cut all open connections through the proxy, and wait for their ends."""
        pumping = [*self._pipes.values()]
        for pipe, both in self._pipes.items():
            pipe.cut()
            both.cancel()
        if pumping:
            await asyncio.wait(pumping)


@asynccontextmanager
async def fault_proxy(url: str) -> AsyncIterator[FaultProxy]:
    """Run a fault proxy on a free local port in front of the server at `url`."""
    proxy = FaultProxy(url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()


async def _flush(writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("socket")
    if peer is not None and not writer.transport.is_closing():
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()
