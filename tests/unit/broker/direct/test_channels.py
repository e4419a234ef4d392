"""The channels of direct frames: when acks leave, and what becomes of a publish, without a broker."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest
from pamqp.base import Frame
from pamqp.commands import Basic

from coditect.broker.rabbitmq.consumer_channel import LINGER_SECONDS, ConsumerChannel
from coditect.broker.rabbitmq.publisher_channel import Late, Publish
from coditect.broker.rabbitmq.stream import Stream
from coditect.errors import InvalidTask
from coditect.model.message import Message
from tests.unit.broker.direct.wire import Held, Wire, WireTransport, ack, ended, publish


def acks(frames: list[Frame]) -> list[tuple[int | None, bool | None]]:
    return [(one.delivery_tag, one.multiple) for one in frames if isinstance(one, Basic.Ack)]


def consuming(wire: Wire, *, prefetch: int) -> tuple[ConsumerChannel, Held]:
    consumer_channel, held = wire.consuming()
    consumer_channel._credit(prefetch)
    return consumer_channel, held


async def lingered() -> None:
    await asyncio.sleep(2 * LINGER_SECONDS)  # nothing is to be written meanwhile


async def test_acks_with_credit_to_spare_leave_together(wire: Wire) -> None:
    consumer_channel, held = consuming(wire, prefetch=40)
    at_once = []
    for tag in range(1, 4):
        wire.deliver(tag, "c")
        held.deliveries[-1].ack()
        at_once += await wire.sent()
    await consumer_channel.settlements.flushed()

    assert at_once == []
    assert acks(await wire.sent()) == [(3, True)]


@pytest.mark.parametrize("prefetches", [(3,), (40, 1), (1, 40)])
async def test_ack_leaves_at_once_where_the_credit_of_any_consumer_is_short(
    wire: Wire, prefetches: tuple[int, ...]
) -> None:
    consumer_channel, held = consuming(wire, prefetch=prefetches[0])
    for prefetch in prefetches[1:]:
        consumer_channel._credit(prefetch)
    wire.deliver(1, "c")
    held.deliveries[0].ack()

    assert acks(await wire.sent()) == [(1, True)]


async def test_acks_linger_no_longer_when_many_deliveries_come(wire: Wire) -> None:
    _, held = consuming(wire, prefetch=40)
    wire.deliver(1, "c")
    held.deliveries[0].ack()
    for tag in range(2, 12):
        wire.deliver(tag, "c")

    assert acks(await wire.sent()) == [(1, True)]


@pytest.mark.parametrize("verdict", ["requeue", "reject"])
async def test_delivery_that_is_given_back_waits_for_nobody_and_takes_the_acks_along(wire: Wire, verdict: str) -> None:
    _, held = consuming(wire, prefetch=40)
    for tag in (1, 2):
        wire.deliver(tag, "c")
    held.deliveries[0].ack()
    before = await wire.sent()
    getattr(held.deliveries[1], verdict)()
    [taken, nack] = await wire.sent()

    assert before == []
    assert acks([taken]) == [(1, True)]
    assert isinstance(nack, Basic.Nack) and nack.delivery_tag == 2


async def test_nothing_is_written_for_a_channel_that_was_lost_meanwhile(wire: Wire) -> None:
    consumer_channel, held = consuming(wire, prefetch=40)
    wire.deliver(1, "c")
    held.deliveries[0].ack()
    consumer_channel.lose()
    await lingered()

    assert await wire.sent() == []


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
