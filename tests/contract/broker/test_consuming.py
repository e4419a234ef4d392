from __future__ import annotations

import pytest

from coditect.broker.port import Delivery
from coditect.broker.topology import QueueType
from coditect.errors import NotFound, SetupError
from coditect.model.message import Message
from tests.contract.broker.scene import FaultyBroker, Scene, bodies, collected, got, has_ready, put, ready
from tests.support import eventually


@pytest.mark.parametrize("kind", list(QueueType))
async def test_messages_are_delivered_in_order_and_acked_for_good(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"0", b"1")

    delivered = await collected(broker, queue, prefetch=1, acks=True)
    await put(broker, queue, b"2", b"3")

    await eventually(lambda: len(delivered) == 4)
    assert bodies(delivered) == [b"0", b"1", b"2", b"3"]
    assert {(one.redelivered, one.delivery_count, one.lost) for one in delivered} == {(False, 0, False)}
    assert await ready(broker, queue) == 0


async def test_consumer_of_a_missing_queue_is_refused(scene: Scene, broker: FaultyBroker) -> None:
    with pytest.raises(NotFound):
        await broker.consume(scene.name("missing"), lambda _: None, prefetch=1)

    assert broker.connected


@pytest.mark.parametrize("kind", list(QueueType))
async def test_prefetch_bounds_what_is_unsettled(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"0", b"1", b"2", b"3", b"4")
    held = await collected(broker, queue, prefetch=2)
    await eventually(lambda: len(held) == 2)
    assert await ready(broker, queue) == 3

    held[0].ack()

    await eventually(lambda: len(held) == 3)
    assert await ready(broker, queue) == 2
    assert bodies(held) == [b"0", b"1", b"2"]


async def test_further_consumer_of_a_group_has_a_prefetch_of_its_own(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, *[b"x"] * 10)

    first, second = [await collected(broker, queue, prefetch=prefetch, group="level") for prefetch in (2, 3)]

    await eventually(lambda: (len(first), len(second)) == (2, 3))
    assert await ready(broker, queue) == 5


async def test_consumers_take_turns(scene: Scene, broker: FaultyBroker, queue: str) -> None:
    first, second = await collected(broker, queue), await collected(await scene.connect(), queue)

    await put(broker, queue, *[b"x"] * 10)

    await eventually(lambda: len(first) + len(second) == 10)
    assert len(first) == len(second) == 5


async def test_canceled_consumer_gets_nothing_more_and_may_settle_what_it_has(broker: FaultyBroker, queue: str) -> None:
    held: list[Delivery] = []
    consumer = await broker.consume(queue, held.append, prefetch=2)
    await put(broker, queue, b"done", b"back", b"never")
    await eventually(lambda: len(held) == 2)

    await consumer.cancel()
    await consumer.cancel()
    held[0].ack()
    held[1].requeue()

    await eventually(lambda: has_ready(broker, queue, 2))
    assert (consumer.queue, consumer.prefetch, consumer.active) == (queue, 2, False)
    assert bodies(held) == [b"done", b"back"]
    delivery = await got(broker, queue)
    assert (delivery.message.body, delivery.redelivered) == (b"back", True)


async def handed_back(broker: FaultyBroker, queue: str, times: int) -> list[Delivery]:
    """The deliveries of a message that its consumer hands back so often."""
    seen: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        seen.append(delivery)
        if len(seen) <= times:
            delivery.requeue()

    await broker.consume(queue, take, prefetch=1)
    await eventually(lambda: len(seen) == times + 1)
    return seen


async def test_requeued_message_comes_back_first_with_its_count(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"first", b"second")

    seen = await handed_back(broker, queue, 2)

    assert bodies(seen) == [b"first"] * 3
    assert [(one.redelivered, one.delivery_count) for one in seen] == [(False, 0), (True, 1), (True, 2)]


async def test_delivery_count_that_a_publisher_wrote_is_not_believed(broker: FaultyBroker, queue: str) -> None:
    await broker.publish(Message(b"x", {"x-delivery-count": 77}), exchange="", routing_key=queue)

    assert [one.delivery_count for one in await handed_back(broker, queue, 1)] == [0, 1]


@pytest.mark.parametrize("kind", [QueueType.CLASSIC])
async def test_classic_queue_redelivers_without_a_count(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"x")

    seen = await handed_back(broker, queue, 1)

    assert [(one.redelivered, one.delivery_count) for one in seen] == [(False, 0), (True, 0)]


async def test_second_settlement_of_a_delivery_does_nothing(broker: FaultyBroker, queue: str) -> None:
    seen: list[Delivery] = []

    def settle_thrice(delivery: Delivery) -> None:
        seen.append(delivery)
        delivery.ack()
        delivery.requeue()
        delivery.reject()

    consumer = await broker.consume(queue, settle_thrice, prefetch=1)
    await put(broker, queue, b"0", b"1", b"2")

    await eventually(lambda: len(seen) == 3)
    assert bodies(seen) == [b"0", b"1", b"2"]
    assert consumer.active
    assert await ready(broker, queue) == 0


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)], ids=["keeps away", "is kept away"])
async def test_exclusive_consumer_is_alone_until_it_ends(
    scene: Scene, broker: FaultyBroker, first: bool, second: bool
) -> None:
    queue = await scene.declared_queue(broker, kind=QueueType.CLASSIC)
    other = await scene.connect()
    consumer = await broker.consume(queue, lambda _: None, prefetch=1, exclusive=first)
    with pytest.raises(SetupError):
        await other.consume(queue, lambda _: None, prefetch=1, exclusive=second)

    await consumer.cancel()

    assert (await other.consume(queue, lambda _: None, prefetch=1, exclusive=True)).active


async def test_what_a_closed_process_held_goes_to_another(scene: Scene, broker: FaultyBroker) -> None:
    queue, leaving = await scene.declared_queue(broker), await scene.connect()
    held = await collected(leaving, queue)
    await put(broker, queue, b"0", b"1")
    await eventually(lambda: len(held) == 2)

    await leaving.__aexit__(None, None, None)  # type: ignore[attr-defined]
    taken_over = await collected(broker, queue)

    await eventually(lambda: len(taken_over) == 2)
    assert bodies(taken_over) == [b"0", b"1"]
    assert {one.redelivered for one in taken_over} == {True}
