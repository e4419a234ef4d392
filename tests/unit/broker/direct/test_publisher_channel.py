"""A publishing channel of direct frames, without a broker."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from coditect.broker.rabbitmq.publisher_channel import Late, Publish
from coditect.broker.rabbitmq.stream import Stream
from coditect.errors import InvalidTask
from coditect.model.message import Message
from tests.unit.broker.direct.wire import Wire, WireTransport, ack, ended, publish


async def test_publish_that_is_late_says_so_and_its_confirm_ends_nothing_else(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    loop = asyncio.get_running_loop()
    late: asyncio.Future[None] = loop.create_future()
    publisher_channel.begin(Publish(Message(b""), "", "q", late, loop.time()))
    patient = publish(publisher_channel)

    while not late.done():
        await asyncio.sleep(0)
    wire.say(ack(1), ack(2))

    assert ended([late, patient]) == [Late, None]


async def test_publish_nobody_waits_for_any_more_keeps_its_number(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    given_up, waiting = publish(publisher_channel), publish(publisher_channel)

    given_up.cancel()
    wire.say(ack(1))
    after_first = ended([waiting])
    wire.say(ack(2))

    assert after_first == ["waits"]
    assert ended([waiting]) == [None]


async def test_message_that_amqp_cannot_carry_takes_no_number(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()

    with pytest.raises(InvalidTask):
        publisher_channel.send(Message(b"", {"a": object()}), exchange="", routing_key="q")
    sound = publish(publisher_channel)
    wire.say(ack(1))

    assert ended([sound]) == [None]


async def test_what_is_written_after_the_transport_closed_is_dropped_quietly(wire: Wire) -> None:
    _, held = wire.consuming()
    wire.deliver(1, "c")
    wire.transport.closing = True

    held.deliveries[0].ack()

    assert await wire.sent() == []


async def test_everything_of_one_turn_leaves_in_one_write() -> None:
    transport = WireTransport()
    stream = Stream(transport, transport.drain, asyncio.get_running_loop())
    writes: list[bytes] = []
    with patch.object(transport, "write", writes.append):
        stream.write([b"a", b"b"])
        stream.write([b"c"])
        await asyncio.sleep(0)
        stream.write([b"d"])
        await asyncio.sleep(0)

    assert writes == [b"abc", b"d"]
