"""What a queue does that may hold only so much and drops its oldest: it refuses nobody."""

from __future__ import annotations

import pytest

from coditect.broker.topology import Binding, ExchangeType, QueueType
from coditect.model.message import Message
from tests.contract.broker.scene import FaultyBroker, Scene, empty, put, ready, topology
from tests.support import eventually

KINDS = [QueueType.QUORUM, QueueType.CLASSIC]


@pytest.mark.parametrize("kind", KINDS)
async def test_queue_that_is_full_drops_its_oldest_message_and_takes_the_new_one(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    queue = await scene.declared_queue(broker, kind=kind, max_length=2, drops_oldest=True)

    await put(broker, queue, b"1", b"2", b"3")

    async def two_left() -> bool:
        return await ready(broker, queue) == 2

    await eventually(two_left)
    assert await empty(broker, queue) == [b"2", b"3"]


@pytest.mark.parametrize("kind", KINDS)
async def test_queue_over_its_bytes_drops_its_oldest_messages(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    queue = await scene.declared_queue(broker, kind=kind, max_length_bytes=100, drops_oldest=True)

    await put(broker, queue, b"a" * 60, b"b" * 30, b"c" * 60)

    async def one_dropped() -> bool:
        return await ready(broker, queue) == 2

    await eventually(one_dropped)
    assert await empty(broker, queue) == [b"b" * 30, b"c" * 60]


@pytest.mark.parametrize("kind", KINDS)
async def test_message_larger_than_the_queue_may_hold_is_taken_and_dropped(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    queue = await scene.declared_queue(broker, kind=kind, max_length_bytes=100, drops_oldest=True)

    await put(broker, queue, b"a" * 101, b"b" * 10)

    async def one_left() -> bool:
        return await ready(broker, queue) == 1

    await eventually(one_left)
    assert await empty(broker, queue) == [b"b" * 10]


async def test_full_queue_of_copies_does_not_hold_up_the_original(scene: Scene, broker: FaultyBroker) -> None:
    source = scene.exchange("source", ExchangeType.FANOUT)
    copies, original = scene.queue("copies", max_length=1, drops_oldest=True), scene.queue("original")
    bindings = [Binding(source.name, one.name) for one in (copies, original)]
    await broker.declare(topology(source, copies, original, *bindings))

    for _ in range(5):
        await broker.publish(Message(b"x"), exchange=source.name, routing_key="", wait_when_full=False)

    assert await ready(broker, original.name) == 5
