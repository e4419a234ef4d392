from __future__ import annotations

from dataclasses import replace

import pytest

from coditect.broker.port import Delivery, QueueStats
from coditect.broker.topology import Binding, ExchangeType, QueueType
from coditect.errors import NotFound, TopologyMismatch, Unroutable
from coditect.model.message import Message
from tests.contract.broker.scene import FaultyBroker, Scene, bodies, collected, empty, has_ready, put, ready, topology
from tests.support import eventually


async def test_declaring_the_same_again_changes_nothing(scene: Scene, broker: FaultyBroker) -> None:
    source, queue = scene.exchange("source"), scene.queue("queue", dead_letter_exchange=scene.name("source"))
    wanted = topology(source, queue, Binding(source.name, queue.name, "#"))
    await broker.declare(wanted)
    await put(broker, queue.name, b"kept")

    await broker.declare(wanted)
    await (await scene.connect()).declare(wanted)

    assert await empty(broker, queue.name) == [b"kept"]


@pytest.mark.parametrize("kind", list(QueueType))
async def test_queue_with_other_arguments_is_a_mismatch_that_names_it(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    queue = scene.queue("queue", kind)
    await broker.declare(topology(queue))

    with pytest.raises(TopologyMismatch) as caught:
        await broker.declare(topology(replace(queue, message_ttl_ms=1_000)))

    assert caught.value.facts["entity"] == queue.name
    await put(broker, queue.name, b"works on")
    assert await empty(broker, queue.name) == [b"works on"]


async def test_exchange_with_another_type_is_a_mismatch_that_names_it(scene: Scene, broker: FaultyBroker) -> None:
    exchange = scene.exchange("exchange", ExchangeType.DIRECT)
    await broker.declare(topology(exchange))

    with pytest.raises(TopologyMismatch) as caught:
        await broker.declare(topology(replace(exchange, type=ExchangeType.FANOUT)))

    assert caught.value.facts["entity"] == exchange.name


async def test_stats_count_ready_messages_and_consumers(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"0", b"1", b"2")
    assert await broker.stats(queue) == QueueStats(messages=3, consumers=0)

    held = await collected(broker, queue, prefetch=1)
    await eventually(lambda: len(held) == 1)

    assert await broker.stats(queue) == QueueStats(messages=2, consumers=1)


async def test_missing_queue_has_no_stats(scene: Scene, broker: FaultyBroker) -> None:
    assert await broker.stats(scene.name("missing")) is None
    assert broker.connected


async def test_looked_at_messages_go_back_to_their_places_when_released(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"0", b"1", b"2")
    looked_at = [await broker.get(queue) for _ in range(4)]
    during = await ready(broker, queue)

    await broker.release()

    await eventually(lambda: has_ready(broker, queue, 3))
    assert [one and one.message.body for one in looked_at] == [b"0", b"1", b"2", None]
    assert during == 0
    again = await broker.get(queue)
    assert again is not None
    assert (again.message.body, again.redelivered, again.delivery_count) == (b"0", True, 1)


async def test_settled_one_does_not_come_back_with_the_release(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"acked", b"looked at", b"returned")
    acked, looked_at, returned = [await broker.get(queue) for _ in range(3)]
    assert acked is not None and looked_at is not None and returned is not None

    acked.ack()
    returned.requeue()
    await broker.release()
    looked_at.ack()

    await eventually(lambda: has_ready(broker, queue, 2))
    assert looked_at.lost
    assert sorted(await empty(broker, queue)) == [b"looked at", b"returned"]


async def test_get_from_a_missing_queue_is_refused_and_the_next_get_works(
    scene: Scene, broker: FaultyBroker, queue: str
) -> None:
    await put(broker, queue, b"x")

    with pytest.raises(NotFound):
        await broker.get(scene.name("missing"))

    assert await empty(broker, queue) == [b"x"]


async def test_deleted_queue_is_gone_with_its_bindings(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"x")

    await broker.delete_queue(queue)
    await broker.delete_queue(queue)

    assert await broker.stats(queue) is None


async def test_queue_gets_nothing_more_by_a_binding_that_is_removed(scene: Scene, broker: FaultyBroker) -> None:
    exchange, queue = scene.exchange("exchange"), scene.queue("queue")
    removed, kept = Binding(exchange.name, queue.name, "removed"), Binding(exchange.name, queue.name, "kept")
    await broker.declare(topology(exchange, queue, removed, kept))
    await broker.publish(Message(body=b"before"), exchange=exchange.name, routing_key="removed")

    for _ in range(2):
        await broker.unbind(removed)
    await broker.unbind(Binding(exchange.name, scene.name("missing"), "removed"))

    with pytest.raises(Unroutable):
        await broker.publish(Message(body=b"after"), exchange=exchange.name, routing_key="removed")
    await broker.publish(Message(body=b"kept"), exchange=exchange.name, routing_key="kept")
    assert await empty(broker, queue.name) == [b"before", b"kept"]


@pytest.mark.parametrize("kind", QueueType)
async def test_queue_that_holds_messages_stays_when_only_an_empty_one_may_go(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    queue, classic = await scene.declared_queue(broker, kind=kind), kind is QueueType.CLASSIC
    await put(broker, queue, b"x")

    await broker.delete_queue(queue, if_empty=True, classic=classic)
    kept = await empty(broker, queue)
    await eventually(lambda: has_ready(broker, queue, 0))
    await broker.delete_queue(queue, if_empty=True, classic=classic)

    assert kept == [b"x"]
    assert await broker.stats(queue) is None


@pytest.mark.parametrize("kind", list(QueueType))
async def test_unused_queue_expires_with_its_messages(scene: Scene, broker: FaultyBroker, kind: QueueType) -> None:
    queue = await scene.declared_queue(broker, kind=kind, expires_ms=2_000)
    used = await scene.declared_queue(broker, "used", kind=kind, expires_ms=2_000)
    held: list[Delivery] = []
    await broker.consume(used, held.append, prefetch=1)
    await put(broker, queue, b"x")

    await eventually(lambda: _is_gone(broker, queue))
    await put(broker, used, b"y")

    await eventually(lambda: bodies(held) == [b"y"])
    assert await broker.stats(queue) is None


async def _is_gone(broker: FaultyBroker, queue: str) -> bool:
    """Whether nothing can be published to it; every other call would count as use."""
    try:
        await put(broker, queue, b"x")
    except Unroutable:
        return True
    return False


async def test_server_says_who_it_is(broker: FaultyBroker) -> None:
    assert broker.server.product
    assert broker.server.version >= (3, 10)
