"""The way back of retries: shared retry-delay queues, and a way out of them that belongs to each capability."""

from __future__ import annotations

from coditect.broker.port import Delivery
from coditect.broker.topology import base_topology, capability_queues
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire import routing
from tests.contract.broker.scene import FaultyBroker, Scene
from tests.support import eventually

FULL, OTHER = "full", "other"
MANY = 100
"""More than RabbitMQ hands over of one queue's dead letters before their target has taken some."""


async def retry(broker: FaultyBroker, capability: str, body: bytes) -> None:
    key = routing.task_key(capability, Priority.P1)
    await broker.publish(Message(body), exchange=routing.retry_exchange(100), routing_key=key)


async def consumed(broker: FaultyBroker, capability: str) -> list[Delivery]:
    seen: list[Delivery] = []
    await broker.consume(routing.task_queue(capability, Priority.P1), seen.append, prefetch=10)
    return seen


async def test_retries_of_a_capability_whose_queue_is_full_hold_up_no_other(scene: Scene, broker: FaultyBroker) -> None:
    full, other = scene.name(FULL), scene.name(OTHER)
    await broker.declare(base_topology())
    await broker.declare(capability_queues(full, max_queued=1))
    await broker.declare(capability_queues(other))
    seen = await consumed(broker, other)
    for number in range(MANY):
        await retry(broker, full, b"%d" % number)

    await retry(broker, other, b"mine")

    await eventually(lambda: seen)
    assert (seen[0].message.body, seen[0].routing_key) == (b"mine", routing.task_key(other, Priority.P1))
    held = await broker.stats(routing.task_queue(full, Priority.P1))
    assert held is not None and held.messages < MANY, "it was never full"


async def test_retry_comes_back_once_and_in_no_history_of_the_queue_it_goes_to(
    scene: Scene, broker: FaultyBroker
) -> None:
    name = scene.name(OTHER)
    await broker.declare(base_topology())
    await broker.declare(capability_queues(name))
    seen = await consumed(broker, name)

    await retry(broker, name, b"mine")

    await eventually(lambda: seen)
    queues = [death["queue"] for death in seen[0].message.headers["x-death"]]
    assert queues == [routing.retry_back_queue(name), routing.retry_queue(100)]


async def test_retry_of_a_capability_without_a_way_out_of_its_own_comes_back_as_well(
    scene: Scene, broker: FaultyBroker
) -> None:
    """Its agents run an earlier version."""
    name = scene.name(OTHER)
    whole = capability_queues(name)
    await broker.declare(base_topology())
    await broker.declare(whole.without({routing.retry_back_queue(name)}))
    seen = await consumed(broker, name)

    await retry(broker, name, b"mine")

    await eventually(lambda: seen)
    assert seen[0].message.body == b"mine"
