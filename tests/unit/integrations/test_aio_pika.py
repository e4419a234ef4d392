"""The frames of a broker over a program's aio-pika connection, as they pass through aiormq's queues."""

from __future__ import annotations

import asyncio
from typing import Any

from aiormq.abc import ChannelFrame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from coditect.broker.rabbitmq.fields import read_message
from coditect.integrations.aio_pika import _encoded, _QueueTransport
from coditect.wire.tasks import UNDECODABLE


class FakeConnection:
    """aiormq's connection, whose queue holds two frames."""

    is_closed = False

    def __init__(self) -> None:
        self.write_queue: asyncio.Queue[ChannelFrame] = asyncio.Queue(2)

    @staticmethod
    def create_future() -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


async def test_bytes_leave_in_order_with_the_library_s_frames_although_the_queue_is_full() -> None:
    connection = FakeConnection()
    opened: Any = connection
    writer = _QueueTransport(opened)
    theirs = [ChannelFrame(name, should_close=False) for name in (b"their first", b"their last")]
    connection.write_queue.put_nowait(theirs[0])

    writer.write(b"ours")
    writer.write(b"ours, too")
    behind = asyncio.create_task(connection.write_queue.put(theirs[1]))  # has to wait, as without ours
    await asyncio.sleep(0)
    waited, unsent = not behind.done(), writer.get_write_buffer_size()
    left = []
    draining = asyncio.create_task(writer.drain())
    for _ in range(4):
        frame = await connection.write_queue.get()
        frame.drain()
        left.append(frame.payload)
    await draining
    await behind

    assert (waited, unsent) == (True, len(b"oursours, too"))
    assert left == [b"their first", b"ours", b"ours, too", b"their last"]
    assert writer.get_write_buffer_size() == 0


def test_header_that_the_library_reads_and_cannot_write_is_marked() -> None:
    header = ContentHeader(body_size=7, properties=Basic.Properties(message_id="a", headers={"much": 1e300}))

    raw = _encoded(header, 3)

    assert UNDECODABLE in read_message(raw[7:-1], b"").headers
    assert int.from_bytes(raw[11:19], "big") == header.body_size
