"""What counts as a sign of life on a connection to the broker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from yarl import URL

from coditect.broker.rabbitmq.connection import Transport

HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
FLOW_OK = b"\x01\x00\x01\x00\x00\x00\x05\x00\x14\x00\x15\x01\xce"


@pytest.mark.parametrize(("frame", "silent"), [(HEARTBEAT, 30.0), (FLOW_OK, 10.0)], ids=["heartbeat", "answer"])
async def test_connection_with_heartbeats_alone_is_silent(
    monkeypatch: pytest.MonkeyPatch, frame: bytes, silent: float
) -> None:
    """RabbitMQ sends them, too, on a connection from which it reads nothing, and between two questions they can lie."""
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(f"{Transport.__module__}.time", SimpleNamespace(monotonic=lambda: clock.now))

    async def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.put_nowait(writer)

    async with await asyncio.start_server(met, "127.0.0.1", 0) as server:
        transport = Transport(install=lambda _: bytes)
        url = URL(f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        reader, _ = await transport.create(url)
        sender = await writers.get()
        try:
            clock.now += 20
            sender.write(frame)
            assert await reader.readexactly(len(frame)) == frame, "the library gets both"
            clock.now += 10
            assert transport.silent_seconds == silent
        finally:
            transport.abort()
            sender.transport.abort()


async def test_end_of_the_brokers_certificate_is_known_while_the_connection_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(met, "127.0.0.1", 0) as server:
        transport = Transport(install=lambda _: bytes)
        _, writer = await transport.create(URL(f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
        ends = [transport.certificate_end]

        shown = {"peercert": {"notAfter": "Jan  5 09:34:43 2027 GMT"}}
        monkeypatch.setattr(writer, "get_extra_info", shown.get)

        assert [*ends, transport.certificate_end] == [None, datetime(2027, 1, 5, 9, 34, 43, tzinfo=UTC).timestamp()]
        transport.abort()
