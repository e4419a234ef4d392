"""Acks wait a moment for others where no consumer needs its credit, and only there."""

from __future__ import annotations

import asyncio

import pytest
from pamqp.base import Frame
from pamqp.commands import Basic

from coditect.broker.rabbitmq import consumer_channel as direct
from coditect.broker.rabbitmq.consumer_channel import ConsumerChannel
from tests.unit.broker.direct.wire import Held, Wire


def acks(frames: list[Frame]) -> list[tuple[int | None, bool | None]]:
    return [(one.delivery_tag, one.multiple) for one in frames if isinstance(one, Basic.Ack)]


def consuming(wire: Wire, *, prefetch: int) -> tuple[ConsumerChannel, Held]:
    consumer_channel, held = wire.consuming()
    consumer_channel._credit(prefetch)
    return consumer_channel, held


async def lingered() -> None:
    await asyncio.sleep(2 * direct.LINGER_SECONDS)  # nothing is to be written meanwhile


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
    [ack, nack] = await wire.sent()

    assert before == []
    assert acks([ack]) == [(1, True)]
    assert isinstance(nack, Basic.Nack) and nack.delivery_tag == 2


async def test_nothing_is_written_for_a_channel_that_was_lost_meanwhile(wire: Wire) -> None:
    consumer_channel, held = consuming(wire, prefetch=40)
    wire.deliver(1, "c")
    held.deliveries[0].ack()
    consumer_channel.lose()
    await lingered()

    assert await wire.sent() == []
