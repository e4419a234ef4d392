"""Exchanges and bindings that somebody deletes: those who own them make them again, and what came back is kept."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from coditect.broker.port import ASTRAY_SECONDS, Delivery
from coditect.broker.topology import Binding, Topology, base_topology, reply_queue
from coditect.errors import BrokerUnavailable, CoditectError, Unroutable
from coditect.model.message import Message
from coditect.wire import routing
from coditect.wire.tasks import SENT_AGAIN
from tests.contract.broker.scene import FaultyBroker, Scene, bodies, collected, empty, has_ready, put, ready, topology
from tests.support import eventually


async def test_lost_connection_loses_the_deliveries_tells_once_and_they_come_again(
    broker: FaultyBroker, queue: str
) -> None:
    seen: list[Delivery] = []
    lost: list[list[bool]] = []
    await broker.consume(queue, seen.append, prefetch=2, on_lost=lambda: lost.append([one.lost for one in seen]))
    await put(broker, queue, b"0", b"1", b"2")
    await eventually(lambda: len(seen) == 2)

    broker.drop()

    await eventually(lambda: len(seen) == 4)
    assert lost == [[True, True]]
    assert bodies(seen[2:]) == [b"0", b"1"]
    assert [(one.lost, one.redelivered, one.delivery_count) for one in seen[2:]] == [(False, True, 1)] * 2
    await eventually(lambda: broker.connected)


async def test_settling_a_lost_delivery_does_nothing(broker: FaultyBroker, queue: str) -> None:
    seen = await collected(broker, queue, prefetch=1)
    await put(broker, queue, b"x")
    await eventually(lambda: len(seen) == 1)
    broker.drop()
    await eventually(lambda: len(seen) == 2)

    seen[0].ack()
    seen[0].requeue()
    seen[0].reject()
    await put(broker, queue, b"next")

    assert [one.lost for one in seen] == [True, False]
    seen[1].ack()
    await eventually(lambda: bodies(seen) == [b"x", b"x", b"next"])


async def test_what_was_acked_before_the_loss_does_not_come_again(broker: FaultyBroker, queue: str) -> None:
    seen = await collected(broker, queue, prefetch=2)
    await put(broker, queue, b"done", b"held")
    await eventually(lambda: len(seen) == 2)
    seen[0].ack()
    await put(broker, queue, b"shows that the ack arrived")
    await eventually(lambda: len(seen) == 3)

    broker.drop()

    await eventually(lambda: len(seen) == 5)
    assert bodies(seen[3:]) == [b"held", b"shows that the ack arrived"]


async def test_every_consumer_of_a_group_is_subscribed_again(scene: Scene, broker: FaultyBroker) -> None:
    one, two = await scene.declared_queue(broker, "one"), await scene.declared_queue(broker, "two")
    seen: list[Delivery] = []
    lost: list[str] = []
    for queue in (one, two):
        await broker.consume(
            queue,
            seen.append,
            prefetch=1,
            group="g",
            on_lost=lambda queue=queue: lost.append(queue),  # type: ignore[misc]
        )

    broker.drop()
    await put(broker, one, b"1")
    await put(broker, two, b"2")

    await eventually(lambda: sorted(bodies(seen)) == [b"1", b"2"])
    assert sorted(lost) == sorted([one, two])


async def test_canceled_consumer_is_not_subscribed_again(broker: FaultyBroker, queue: str) -> None:
    seen: list[Delivery] = []
    lost: list[int] = []
    consumer = await broker.consume(queue, seen.append, prefetch=1, on_lost=lambda: lost.append(1))
    await put(broker, queue, b"x")
    await eventually(lambda: len(seen) == 1)
    await consumer.cancel()

    broker.drop()
    await eventually(lambda: has_ready(broker, queue, 1))

    assert seen[0].lost
    assert (len(seen), lost, consumer.active) == (1, [], False)


async def test_publishes_under_way_when_the_connection_breaks_arrive_at_least_once_with_their_ids(
    broker: FaultyBroker, queue: str
) -> None:
    ids = [f"id-{number}" for number in range(100)]
    publishes = [
        asyncio.ensure_future(broker.publish(Message(b"x" * 1000, message_id=one), exchange="", routing_key=queue))
        for one in ids
    ]
    await asyncio.wait(publishes, return_when=asyncio.FIRST_COMPLETED)

    broker.drop()
    await asyncio.gather(*publishes)

    arrived: Counter[str | None] = Counter()
    unmarked: Counter[str | None] = Counter()
    while (delivery := await broker.get(queue)) is not None:
        arrived[delivery.message.message_id] += 1
        unmarked[delivery.message.message_id] += SENT_AGAIN not in delivery.message.headers
    assert arrived.keys() == set(ids)
    assert max(unmarked.values()) == 1, "what may be there already is sent again with a mark"


async def test_call_right_after_a_loss_waits_for_the_next_connection(
    scene: Scene, broker: FaultyBroker, queue: str
) -> None:
    await put(broker, queue, b"x")

    broker.drop()
    await broker.declare(topology(scene.queue("another")))

    assert await ready(broker, queue) == 1
    assert await empty(broker, queue) == [b"x"]


async def test_consumer_of_a_deleted_queue_consumes_again_when_it_is_declared(
    scene: Scene, broker: FaultyBroker
) -> None:
    queue = scene.queue("queue")
    other = await scene.connect()
    await other.declare(topology(queue))
    seen: list[Delivery] = []
    consumer = await broker.consume(queue.name, seen.append, prefetch=1)

    await other.delete_queue(queue.name)
    await eventually(lambda: not consumer.active)
    deaf = broker.connected
    await other.declare(topology(queue))
    await put(other, queue.name, b"x")

    await eventually(lambda: bodies(seen) == [b"x"])
    assert not deaf
    await eventually(lambda: consumer.active and broker.connected)


async def test_consumer_of_a_deleted_queue_does_not_silence_its_group(scene: Scene, broker: FaultyBroker) -> None:
    other = await scene.connect()  # declares the queue: a process makes its own again
    gone, stays = await scene.declared_queue(other, "gone"), await scene.declared_queue(broker, "stays")
    seen: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        seen.append(delivery)
        delivery.ack()

    consumer = await broker.consume(gone, take, prefetch=1, group="g")
    await broker.consume(stays, take, prefetch=1, group="g")

    await other.delete_queue(gone)
    await eventually(lambda: not consumer.active)
    for number in range(20):
        await put(other, stays, str(number).encode())
        await eventually(lambda expected=number + 1: len(set(bodies(seen))) == expected)  # type: ignore[misc]

    assert not consumer.active


async def test_entities_that_the_broker_lost_are_declared_again_on_the_next_connection(
    scene: Scene, broker: FaultyBroker
) -> None:
    source, queue = scene.exchange("source"), scene.queue("queue")
    await broker.declare(topology(source, queue, Binding(source.name, queue.name, "#")))
    seen = await collected(broker, queue.name)

    await (await scene.connect()).delete_queue(queue.name)
    broker.drop()
    await broker.publish(Message(b"x"), exchange=source.name, routing_key="a")

    await eventually(lambda: bodies(seen) == [b"x"])


async def test_queue_that_a_process_deleted_itself_is_not_declared_again(
    scene: Scene, broker: FaultyBroker, queue: str
) -> None:
    kept = await scene.declared_queue(broker, "kept")
    lost: list[bool] = []
    await broker.consume(kept, lambda _: None, prefetch=1, on_lost=lambda: lost.append(True))
    other = await scene.connect()
    await broker.delete_queue(queue)

    broker.drop()
    await eventually(lambda: bool(lost) and broker.connected)

    assert await other.stats(queue) is None


async def test_looked_at_message_is_lost_with_the_connection_and_ready_again(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"x")
    looked_at = await broker.get(queue)
    assert looked_at is not None

    broker.drop()

    await eventually(lambda: looked_at.lost)
    await eventually(lambda: has_ready(broker, queue, 1))
    await broker.release()
    assert await empty(broker, queue) == [b"x"]


async def test_closed_broker_refuses_to_publish(scene: Scene, broker: FaultyBroker, queue: str) -> None:
    leaving = await scene.connect()
    await leaving.__aexit__(None, None, None)  # type: ignore[attr-defined]

    with pytest.raises(CoditectError) as caught:
        await leaving.publish(Message(b"x"), exchange="", routing_key=queue, timeout_seconds=0.2)

    assert isinstance(caught.value, BrokerUnavailable)


async def test_return_of_a_connection_is_looked_at_before_anything_is_published(
    scene: Scene, broker: FaultyBroker, queue: str
) -> None:
    came, go = asyncio.Event(), asyncio.Event()
    seen: list[int | None] = []

    async def check() -> None:
        came.set()
        await go.wait()
        seen.append(await ready(broker, queue))

    broker.on_reconnect(check)
    await put(broker, queue, b"before")
    assert seen == []
    broker.drop()
    await asyncio.wait_for(came.wait(), 5)

    later = asyncio.create_task(put(broker, queue, b"after"))
    other = await scene.connect()
    assert await ready(other, queue) == 1
    go.set()
    await later

    assert seen[0] == 1
    assert await empty(broker, queue) == [b"before", b"after"]


async def test_queue_that_is_made_once_is_not_made_again(scene: Scene, broker: FaultyBroker) -> None:
    lasting, marker = scene.queue("lasting"), scene.queue("marker", once=True)
    await broker.declare(topology(lasting, marker))
    other = await scene.connect()
    await other.delete_queue(lasting.name)
    await other.delete_queue(marker.name)

    broker.drop()
    await put(broker, lasting.name, b"there")

    assert await broker.stats(marker.name) is None
    assert await ready(broker, lasting.name) == 1


@pytest.fixture
async def way(scene: Scene, broker: FaultyBroker) -> Topology:
    """An exchange and a queue of this process, bound."""
    exchange, queue = scene.exchange("exchange"), scene.queue("queue")
    made = topology(exchange, queue, Binding(exchange.name, queue.name, "key"))
    await broker.declare(made)
    return made


@pytest.mark.parametrize("gone", ["exchange", "binding"])
async def test_publish_arrives_although_its_exchange_or_binding_was_deleted(
    scene: Scene, broker: FaultyBroker, way: Topology, gone: str
) -> None:
    name = way.exchanges[0].name
    await (scene.faults.delete_exchange(name) if gone == "exchange" else scene.faults.unbind(way.bindings[0]))

    await broker.publish(Message(b"kept"), exchange=name, routing_key="key")

    assert await empty(broker, way.queues[0].name) == [b"kept"]


async def test_many_publishes_to_an_exchange_that_is_deleted_meanwhile_arrive(
    scene: Scene, broker: FaultyBroker, way: Topology
) -> None:
    name = way.exchanges[0].name
    publishes = [broker.publish(Message(b"%d" % n), exchange=name, routing_key="key") for n in range(100)]

    await asyncio.gather(*publishes[:50], scene.faults.delete_exchange(name), *publishes[50:])

    assert set(await empty(broker, way.queues[0].name)) == {b"%d" % n for n in range(100)}


async def test_publish_waits_until_the_owner_of_its_queue_has_bound_it_again(
    scene: Scene, broker: FaultyBroker
) -> None:
    owner, name = await scene.connect(), f"reply.{scene.name('owner')}"
    replies = reply_queue(name)
    await owner.declare(base_topology() + replies)
    await scene.faults.unbind(replies.bindings[0])

    await broker.publish(Message(b"kept"), exchange=routing.REPLIES, routing_key=name)

    assert await empty(owner, name) == [b"kept"]
    await owner.delete_queue(name)


@pytest.mark.parametrize("name", ["nobody", "no*body", "nöbody", "nobody" * 30])
async def test_publish_for_a_queue_that_is_not_there_comes_back_at_once(
    scene: Scene, broker: FaultyBroker, name: str
) -> None:
    """Whatever it is called: the protocol's library writes no name with a star."""
    await broker.declare(base_topology())

    async with asyncio.timeout(ASTRAY_SECONDS / 3):
        with pytest.raises(Unroutable):
            await broker.publish(Message(b""), exchange=routing.REPLIES, routing_key=f"reply.{scene.name(name)}")


async def test_what_is_declared_lazily_is_made_when_it_is_missing(scene: Scene, broker: FaultyBroker) -> None:
    exchange, queue = scene.exchange("exchange"), scene.queue("queue")
    await broker.declare(topology(exchange), lazily=True)

    await broker.declare(topology(queue, Binding(exchange.name, queue.name, "key")))
    await broker.publish(Message(b"arrived"), exchange=exchange.name, routing_key="key")

    assert await empty(broker, queue.name) == [b"arrived"]
