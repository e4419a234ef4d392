"""A consumer that the broker does not serve, though nobody told the process."""

from __future__ import annotations

import asyncio
import logging

import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq.consuming import Subscription
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.model.message import Message
from tests.integration.broker.conftest import Scene
from tests.support import eventually, patient

pytestmark = pytest.mark.servers
LOOK_SECONDS = 0.3
WARNING = "A consumer was deaf; subscribing again"


async def make_deaf(broker: AmqpBroker, subscription: object, group: str = "") -> None:
    """Ends the consumer on the wire, behind the adapter's back."""
    channel = broker._groups[group]._open
    assert isinstance(subscription, Subscription) and subscription.tag and channel
    await channel.channel.basic_cancel(subscription.tag)


async def test_consumer_that_the_broker_does_not_know_is_subscribed_again_within_two_looks(
    scene: Scene, broker: AmqpBroker
) -> None:
    queue = await scene.declare()
    seen: list[Delivery] = []
    consumer = await broker.consume(queue, seen.append, prefetch=5)
    await make_deaf(broker, consumer)
    await broker.publish(Message(b"x"), exchange="", routing_key=queue)

    await eventually(lambda: len(seen) == 1, seconds=patient(2 * LOOK_SECONDS + 1))

    await eventually(lambda: consumer.active)  # a delivery may come before the broker's word that it consumes
    assert broker.connected


async def test_deaf_consumer_is_found_though_another_process_consumes_the_queue(
    scene: Scene, broker: AmqpBroker
) -> None:
    queue = await scene.declare()
    seen: list[Delivery] = []
    hoarded: list[Delivery] = []
    consumer = await broker.consume(queue, seen.append, prefetch=5)
    await scene.observer.consume(queue, hoarded.append, prefetch=1)
    await make_deaf(broker, consumer)

    for _ in range(3):
        await broker.publish(Message(b"x"), exchange="", routing_key=queue)

    await eventually(lambda: len(seen) == 2, seconds=patient(3 * LOOK_SECONDS + 1))
    assert len(hoarded) == 1


async def test_consumer_of_a_classic_queue_that_was_deleted_and_made_again_at_once_hears_again(
    scene: Scene, broker: AmqpBroker
) -> None:
    queue = Queue(f"{scene.prefix}.classic", QueueType.CLASSIC)
    scene.names.append(queue.name)
    await scene.observer.declare(Topology(queues=(queue,)))
    seen: list[Delivery] = []
    await broker.consume(queue.name, seen.append, prefetch=5)

    await scene.observer.delete_queue(queue.name)
    await scene.observer.declare(Topology(queues=(queue,)))
    await broker.publish(Message(b"x"), exchange="", routing_key=queue.name)

    await eventually(lambda: len(seen) == 1)
    await eventually(lambda: broker.connected)  # a delivery may overtake what the broker says to `consume`


async def test_queue_that_the_process_declared_is_made_again_when_somebody_deletes_it(
    scene: Scene, broker: AmqpBroker
) -> None:
    queue = Queue(f"{scene.prefix}.own", delivery_limit=1_000)
    scene.names.append(queue.name)
    await broker.declare(Topology(queues=(queue,)))
    seen: list[Delivery] = []
    consumer = await broker.consume(queue.name, seen.append, prefetch=5)

    await scene.observer.delete_queue(queue.name)
    await eventually(lambda: not consumer.active)
    not_connected = not broker.connected
    await eventually(lambda: consumer.active)
    await scene.observer.publish(Message(b"x"), exchange="", routing_key=queue.name)

    await eventually(lambda: len(seen) == 1)
    assert not_connected and broker.connected


async def test_idle_full_and_trickling_queues_raise_no_alarm(
    scene: Scene, broker: AmqpBroker, caplog: pytest.LogCaptureFixture
) -> None:
    idle, full, trickle = [await scene.declare(short) for short in ("idle", "full", "trickle")]
    held: list[Delivery] = []
    trickled: list[Delivery] = []
    consumers = [
        await broker.consume(idle, lambda _: None, prefetch=5),
        await broker.consume(full, held.append, prefetch=2, group="full"),
        await broker.consume(trickle, trickled.append, prefetch=1_000, group="trickle"),
    ]
    tags = [one.tag for one in consumers if isinstance(one, Subscription)]
    for _ in range(5):
        await broker.publish(Message(b"x"), exchange="", routing_key=full)

    with caplog.at_level(logging.WARNING):
        until = asyncio.get_running_loop().time() + 8 * LOOK_SECONDS
        while asyncio.get_running_loop().time() < until:
            await broker.publish(Message(b"x"), exchange="", routing_key=trickle)
            await asyncio.sleep(LOOK_SECONDS * 1.1)

    assert WARNING not in caplog.messages
    assert [one.tag for one in consumers if isinstance(one, Subscription)] == tags
    assert (len(held), broker.connected) == (2, True)
