"""What counts as a sign of life on a connection to the broker."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest
from yarl import URL

from coditect.broker.rabbitmq.connection.transport import Transport

HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
FLOW_OK = b"\x01\x00\x01\x00\x00\x00\x05\x00\x14\x00\x15\x01\xce"


@pytest.mark.parametrize(("frame", "heard"), [(HEARTBEAT, False), (FLOW_OK, True)], ids=["heartbeat", "answer"])
async def test_connection_with_heartbeats_alone_is_silent(frame: bytes, heard: bool) -> None:
    """RabbitMQ sends them, too, on a connection from which it reads nothing, and between two questions they can lie."""
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.put_nowait(writer)

    async with await asyncio.start_server(met, "127.0.0.1", 0) as server:
        transport = Transport(install=lambda _: bytes)
        url = URL(f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        reader, _ = await transport.create(url)
        sender = await writers.get()
        sent_at = time.monotonic()
        sender.write(frame)

        assert await reader.readexactly(len(frame)) == frame, "the library gets both"
        assert (transport.silent_seconds < time.monotonic() - sent_at) is heard

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
