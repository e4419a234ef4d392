"""Exchanges and bindings that somebody deletes: those who own them make them again, and what came back is kept."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.rabbitmq.publishing.publisher import ASTRAY_SECONDS
from coditect.broker.topology import Binding, Topology, base_topology, reply_queue
from coditect.errors import NotFound, Unroutable
from coditect.model.message import Message
from coditect.wire import routing
from tests.contract.broker.scene import FaultyBroker, Scene, empty, topology


@pytest.fixture
async def way(scene: Scene, broker: FaultyBroker) -> Topology:
    """An exchange and a queue of this process, bound."""
    exchange, queue = scene.exchange("exchange"), scene.queue("queue")
    made = topology(exchange, queue, Binding(exchange.name, queue.name, "key"))
    await broker.declare(made)
    return made


async def test_publish_to_an_exchange_that_was_deleted_arrives(
    scene: Scene, broker: FaultyBroker, way: Topology
) -> None:
    await scene.faults.delete_exchange(way.exchanges[0].name)

    await broker.publish(Message(b"kept"), exchange=way.exchanges[0].name, routing_key="key")

    assert await empty(broker, way.queues[0].name) == [b"kept"]


async def test_many_publishes_to_an_exchange_that_is_deleted_meanwhile_arrive(
    scene: Scene, broker: FaultyBroker, way: Topology
) -> None:
    name = way.exchanges[0].name
    publishes = [broker.publish(Message(b"%d" % n), exchange=name, routing_key="key") for n in range(100)]

    await asyncio.gather(*publishes[:50], scene.faults.delete_exchange(name), *publishes[50:])

    assert set(await empty(broker, way.queues[0].name)) == {b"%d" % n for n in range(100)}


async def test_publish_that_came_back_for_want_of_our_own_binding_arrives(
    scene: Scene, broker: FaultyBroker, way: Topology
) -> None:
    await scene.faults.unbind(way.bindings[0])

    await broker.publish(Message(b"kept"), exchange=way.exchanges[0].name, routing_key="key")

    assert await empty(broker, way.queues[0].name) == [b"kept"]


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


async def test_publish_to_an_exchange_of_nobody_is_refused_at_once(scene: Scene, broker: FaultyBroker) -> None:
    async with asyncio.timeout(ASTRAY_SECONDS / 3):
        with pytest.raises(NotFound):
            await broker.publish(Message(b""), exchange=scene.name("nowhere"), routing_key="key")
