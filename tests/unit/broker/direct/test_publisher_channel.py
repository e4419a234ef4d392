"""A publishing channel of direct frames, without a broker."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from coditect.broker.rabbitmq.frames.publisher_channel import Once
from coditect.broker.rabbitmq.frames.stream import Stream
from coditect.broker.rabbitmq.path import Late
from coditect.errors import InvalidTask
from coditect.model.message import Message
from tests.unit.broker.direct.wire import Held, Wire, WireWriter, ack, ended, publish


@pytest.fixture
async def wire() -> Wire:
    return Wire()


async def test_publish_that_is_late_says_so_and_its_confirm_ends_nothing_else(wire: Wire) -> None:
    publisher_channel = wire.publisher_channel()
    loop = asyncio.get_running_loop()
    late = Once(Message(b""), "", "q", loop.create_future(), until=loop.time())
    publisher_channel.begin(late)
    patient = publish(publisher_channel)

    while not late.promise.done():
        await asyncio.sleep(0)
    wire.say(ack(1), ack(2))

    assert ended([late.promise, patient]) == [Late, None]


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
    consumer_channel, held = wire.consumer_channel(), Held()
    consumer_channel._receivers[b"c"] = held
    wire.deliver(1, "c")
    wire.writer.ours.closing = True

    held.deliveries[0].ack()

    assert await wire.sent() == []


async def test_everything_of_one_turn_leaves_in_one_write() -> None:
    writer = WireWriter()
    stream = Stream(writer, asyncio.get_running_loop())
    writes: list[bytes] = []
    with patch.object(writer, "write", writes.append):
        stream.write([b"a", b"b"])
        stream.write([b"c"])
        await asyncio.sleep(0)
        stream.write([b"d"])
        await asyncio.sleep(0)

    assert writes == [b"abc", b"d"]
