"""A full quorum queue refuses (`reject-publish`): back-pressure, not an error."""

from __future__ import annotations

import asyncio

import pytest

from coditect.aio.network import Way
from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Topology, capability_queues
from coditect.errors import Overloaded, PublishUnconfirmed
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire.routing import task_queue
from dispatcher.chaos.faults.proxy import fault_proxy
from tests.integration.broker.conftest import Scene
from tests.support import eventually, patient

pytestmark = pytest.mark.servers


async def fill(broker: AmqpBroker, queue: str) -> None:
    """Until it refuses; RabbitMQ lets a burst in before the limit bites."""
    with pytest.raises(Overloaded):
        for _ in range(1_000):
            await broker.publish(Message(b"bulk"), exchange="", routing_key=queue, wait_when_full=False)


async def test_publish_to_a_full_queue_waits_until_there_is_room(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare(max_length=5)
    await fill(broker, queue)
    waiting = asyncio.ensure_future(
        broker.publish(Message(b"patient", message_id="patient"), exchange="", routing_key=queue)
    )
    await asyncio.wait({waiting}, timeout=0.5)
    waited = not waiting.done()

    seen: list[str | None] = []

    def take(delivery: Delivery) -> None:
        seen.append(delivery.message.message_id)
        delivery.ack()

    await broker.consume(queue, take, prefetch=5)
    await waiting

    assert waited
    await eventually(lambda: seen.count("patient") == 1)


async def test_full_queue_is_overload_at_the_deadline_and_took_nothing(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare(max_length=5)
    await fill(broker, queue)
    before = await scene.ready(queue)

    await eventually(lambda: is_overloaded(broker, queue))

    assert await scene.ready(queue) == before


async def is_overloaded(broker: AmqpBroker, queue: str) -> bool:
    """Whether a publish is refused; on a busy machine its last try may be under way as its time ends."""
    with pytest.raises((Overloaded, PublishUnconfirmed)) as ended:
        await broker.publish(Message(b"x"), exchange="", routing_key=queue, timeout_seconds=0.5)
    assert ended.value.retryable
    return ended.type is Overloaded


async def test_urgent_queue_admits_while_the_bulk_queue_of_its_capability_is_full(
    scene: Scene, broker: AmqpBroker
) -> None:
    capability = f"test.c{scene.prefix[-8:]}"
    topology = Topology(queues=capability_queues(capability, max_queued=3).queues)
    await scene.observer.declare(topology)
    scene.names += [queue.name for queue in topology.queues]
    await fill(broker, task_queue(capability, Priority.P2))
    seconds = patient(1.0)
    held_back = [
        asyncio.ensure_future(
            broker.publish(
                Message(b"bulk"), exchange="", routing_key=task_queue(capability, Priority.P2), timeout_seconds=seconds
            )
        )
        for _ in range(50)
    ]

    await broker.publish(
        Message(b"now"), exchange="", routing_key=task_queue(capability, Priority.P0), timeout_seconds=0.9 * seconds
    )
    urgent_first = not any(one.done() for one in held_back)
    ended = await asyncio.gather(*held_back, return_exceptions=True)

    assert urgent_first
    # a publish whose last try is under way as its time ends is not known to be refused: on a busy machine, all of them
    assert {type(one) for one in ended} <= {Overloaded, PublishUnconfirmed}
    assert await scene.ready(task_queue(capability, Priority.P0)) == 1


async def test_refusal_after_a_lost_confirm_is_unconfirmed_not_overload(scene: Scene, wire: str) -> None:
    queue = await scene.declare(max_length=1)
    lost = Message(b"x", message_id="lost")
    async with fault_proxy(scene.url) as proxy, AmqpBroker(proxy.url, wire=wire) as broker:
        await fill(broker, queue)
        [pipe] = proxy.pipes(b"publishes")
        pipe.swallow(Way.TO_CLIENT)
        publishing = asyncio.ensure_future(broker.publish(lost, exchange="", routing_key=queue, wait_when_full=False))
        await eventually(lambda: pipe.is_for(b"lost"))
        assert not publishing.done()
        pipe.cut()

        with pytest.raises(PublishUnconfirmed):
            await publishing
