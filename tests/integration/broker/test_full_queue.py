"""A full quorum queue refuses (`reject-publish`): back-pressure, not an error."""

from __future__ import annotations

import asyncio

import pytest

from chaos.faults.proxy import fault_proxy
from coditect.aio.network import Way
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Topology, capability_queues
from coditect.errors import Overloaded, PublishUnconfirmed
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire.routing import task_queue
from tests.integration.broker.conftest import Scene
from tests.support import eventually, patient

pytestmark = pytest.mark.servers


async def fill(broker: AmqpBroker, queue: str) -> None:
    """Until it refuses; RabbitMQ lets a burst in before the limit bites."""
    with pytest.raises(Overloaded):
        for _ in range(1_000):
            await broker.publish(Message(b"bulk"), exchange="", routing_key=queue, wait_when_full=False)


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


async def test_refusal_after_a_lost_confirm_is_unconfirmed_not_overload(scene: Scene) -> None:
    queue = await scene.declare(max_length=1)
    lost = Message(b"x", message_id="lost")
    async with fault_proxy(scene.url) as proxy, AmqpBroker(proxy.url) as broker:
        await fill(broker, queue)
        [pipe] = proxy.pipes(b"publishes")
        pipe.swallow(Way.TO_CLIENT)
        publishing = asyncio.ensure_future(broker.publish(lost, exchange="", routing_key=queue, wait_when_full=False))
        await eventually(lambda: pipe.is_for(b"lost"))
        assert not publishing.done()
        pipe.cut()

        with pytest.raises(PublishUnconfirmed):
            await publishing
