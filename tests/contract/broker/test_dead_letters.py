"""The way back of retries: shared retry-delay queues, and a way out of them that belongs to each capability."""

from __future__ import annotations

from typing import Any

import pytest

from coditect.broker.port import Delivery
from coditect.broker.topology import Binding, Exchange, ExchangeType, Queue, QueueType, base_topology, capability_queues
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire import routing
from tests.contract.broker.scene import FaultyBroker, Scene, bodies, collected, empty, has_ready, put, ready, topology
from tests.support import eventually


async def declare_with_dead_letters(
    scene: Scene, broker: FaultyBroker, kind: QueueType = QueueType.QUORUM, **more: Any
) -> tuple[Exchange, Queue, Queue]:
    """A topic exchange, its queue, and the queue of its dead letters."""
    source, graves = scene.exchange("source"), scene.exchange("graves")
    dead = scene.queue("dead")
    queue = scene.queue("queue", kind, dead_letter_exchange=graves.name, **more)
    await broker.declare(
        topology(
            source, graves, dead, queue, Binding(graves.name, dead.name, "#"), Binding(source.name, queue.name, "#")
        )
    )
    return source, queue, dead


async def arrival(broker: FaultyBroker, queue: Queue) -> Delivery:
    """The queue's first message, once it is there."""
    arrived: list[Delivery] = []

    async def look() -> bool:
        delivery = await broker.get(queue.name)
        if delivery is not None:
            arrived.append(delivery)
        return bool(arrived)

    await eventually(look)
    return arrived[0]


def only_death(delivery: Delivery) -> dict[str, Any]:
    deaths = delivery.message.headers["x-death"]
    assert len(deaths) == 1
    assert isinstance(deaths[0], dict)
    return deaths[0]


@pytest.mark.parametrize("kind", list(QueueType))
async def test_message_over_the_queues_ttl_is_dead_lettered_with_its_key_and_history(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    source, queue, dead = await declare_with_dead_letters(scene, broker, kind, message_ttl_ms=50)
    message = Message(b"x", {"mine": 1, "CC": ["copy"]}, message_id="id", expiration_ms=5_000)

    await broker.publish(message, exchange=source.name, routing_key="a.b")

    delivery = await arrival(broker, dead)
    headers = delivery.message.headers
    death = only_death(delivery)
    assert (delivery.routing_key, delivery.exchange) == ("a.b", scene.name("graves"))
    assert (delivery.message.body, delivery.message.message_id) == (b"x", "id")
    assert delivery.message.expiration_ms is None
    assert (headers["mine"], headers["CC"]) == (1, ["copy"])
    assert (death["count"], death["reason"], death["queue"]) == (1, "expired", queue.name)
    assert (death["exchange"], death["routing-keys"]) == (source.name, ["a.b", "copy"])
    assert death["original-expiration"] == "5000"
    assert death["time"].tzinfo is not None
    assert headers["x-first-death-reason"] == "expired"
    assert headers["x-first-death-queue"] == queue.name
    assert headers["x-first-death-exchange"] == source.name
    assert (delivery.redelivered, delivery.delivery_count) == (False, 0)


@pytest.mark.parametrize("kind", list(QueueType))
async def test_message_over_its_own_expiration_is_dead_lettered(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    source, queue, dead = await declare_with_dead_letters(scene, broker, kind)

    await broker.publish(Message(b"x", expiration_ms=30), exchange=source.name, routing_key="a")

    delivery = await arrival(broker, dead)
    assert only_death(delivery)["reason"] == "expired"
    assert await ready(broker, queue.name) == 0


async def test_message_in_a_consumers_hand_does_not_expire(scene: Scene, broker: FaultyBroker) -> None:
    source, queue, dead = await declare_with_dead_letters(scene, broker, message_ttl_ms=100)
    held = await collected(broker, queue.name, prefetch=1)

    for body in (b"held", b"waits"):
        await broker.publish(Message(body), exchange=source.name, routing_key="a")

    assert (await arrival(broker, dead)).message.body == b"waits"
    assert bodies(held) == [b"held"]


async def test_message_requeued_after_its_time_expires(scene: Scene, broker: FaultyBroker) -> None:
    _, queue, dead = await declare_with_dead_letters(scene, broker, message_ttl_ms=100)
    held: list[Delivery] = []
    consumer = await broker.consume(queue.name, held.append, prefetch=1)
    await put(broker, queue.name, b"first", b"later")
    await arrival(broker, dead)

    await consumer.cancel()
    held[0].requeue()

    await eventually(lambda: has_ready(broker, dead.name, 1))


@pytest.mark.parametrize("kind", list(QueueType))
async def test_rejected_message_is_dead_lettered(scene: Scene, broker: FaultyBroker, kind: QueueType) -> None:
    source, queue, dead = await declare_with_dead_letters(scene, broker, kind)
    await broker.consume(queue.name, lambda delivery: delivery.reject(), prefetch=1)

    await broker.publish(Message(b"x"), exchange=source.name, routing_key="a.b.c")

    delivery = await arrival(broker, dead)
    assert only_death(delivery)["reason"] == "rejected"
    assert delivery.routing_key == "a.b.c"


async def test_rejected_message_without_a_dead_letter_exchange_is_gone(broker: FaultyBroker, queue: str) -> None:
    await put(broker, queue, b"x", b"y")
    delivered: list[Delivery] = []

    def reject(delivery: Delivery) -> None:
        delivered.append(delivery)
        delivery.reject()

    await broker.consume(queue, reject, prefetch=1)

    await eventually(lambda: bodies(delivered) == [b"x", b"y"])
    assert await ready(broker, queue) == 0


async def test_requeued_message_is_dead_lettered_after_the_delivery_limit_with_its_count(
    scene: Scene, broker: FaultyBroker
) -> None:
    source, queue, dead = await declare_with_dead_letters(scene, broker, delivery_limit=2)
    counts: list[tuple[int, bool]] = []

    def hand_back(delivery: Delivery) -> None:
        counts.append((delivery.delivery_count, delivery.redelivered))
        delivery.requeue()

    await broker.consume(queue.name, hand_back, prefetch=1)
    await broker.publish(Message(b"x"), exchange=source.name, routing_key="a")

    delivery = await arrival(broker, dead)
    assert only_death(delivery)["reason"] == "delivery_limit"
    assert counts == [(0, False), (1, True), (2, True)]
    assert (delivery.delivery_count, delivery.redelivered) == (0, False)


async def test_dead_letter_key_of_the_queue_replaces_key_and_carbon_copies(scene: Scene, broker: FaultyBroker) -> None:
    source, _, dead = await declare_with_dead_letters(
        scene, broker, message_ttl_ms=30, dead_letter_routing_key="its.own"
    )
    copies = scene.queue("copies")
    await broker.declare(topology(copies, Binding(scene.name("graves"), copies.name, "copy")))

    await broker.publish(Message(b"x", {"CC": ["copy"]}), exchange=source.name, routing_key="a")

    delivery = await arrival(broker, dead)
    assert delivery.routing_key == "its.own"
    assert only_death(delivery)["routing-keys"] == ["a", "copy"]
    assert await ready(broker, copies.name) == 0


@pytest.mark.parametrize("kind", QueueType)
async def test_carbon_copy_of_an_expired_message_reaches_its_key_behind_the_dead_letter_exchange(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    inboxes, tasks = scene.exchange("inboxes", ExchangeType.DIRECT), scene.exchange("tasks")
    inbox = scene.queue("inbox", kind, dead_letter_exchange=tasks.name, message_ttl_ms=30, max_length=2)
    queue = scene.queue("queue")
    bindings = [Binding(inboxes.name, inbox.name, "agent"), Binding(tasks.name, queue.name, "code.p1")]
    await broker.declare(topology(inboxes, tasks, queue, inbox, *bindings))

    await broker.publish(Message(b"pinned", {"CC": ["code.p1"]}), exchange=inboxes.name, routing_key="agent")

    delivery = await arrival(broker, queue)
    assert (delivery.message.body, delivery.routing_key) == (b"pinned", "agent")
    assert (delivery.redelivered, delivery.message.headers["x-first-death-queue"]) == (False, inbox.name)


async def test_retry_queue_brings_a_message_back_under_its_own_key_and_counts_the_rounds(
    scene: Scene, broker: FaultyBroker
) -> None:
    tasks, retry = scene.exchange("tasks"), scene.exchange("retry", ExchangeType.FANOUT)
    queue = scene.queue("queue", dead_letter_exchange=retry.name)
    waiting = scene.queue("waiting", dead_letter_exchange=tasks.name, message_ttl_ms=30)
    bindings = [Binding(tasks.name, queue.name, "a.#"), Binding(retry.name, waiting.name)]
    await broker.declare(topology(tasks, retry, queue, waiting, *bindings))
    seen: list[Delivery] = []

    def reject_twice(delivery: Delivery) -> None:
        seen.append(delivery)
        if len(seen) < 3:
            delivery.reject()

    await broker.consume(queue.name, reject_twice, prefetch=1)
    await broker.publish(Message(b"x"), exchange=tasks.name, routing_key="a.b")

    await eventually(lambda: len(seen) == 3)
    deaths = seen[-1].message.headers["x-death"]
    assert [one.routing_key for one in seen] == ["a.b"] * 3
    assert [(death["queue"], death["reason"], death["count"]) for death in deaths] == [
        (waiting.name, "expired", 2),
        (queue.name, "rejected", 2),
    ]
    assert seen[-1].message.headers["x-first-death-queue"] == queue.name


async def test_message_that_would_cycle_by_time_alone_is_dropped(scene: Scene, broker: FaultyBroker) -> None:
    back = scene.exchange("back", ExchangeType.FANOUT)
    there = scene.queue("there", dead_letter_exchange=back.name, message_ttl_ms=30)
    again = scene.queue("again", dead_letter_exchange="", dead_letter_routing_key=there.name, message_ttl_ms=30)
    end = scene.queue("end")
    fan = [Binding(back.name, queue.name) for queue in (again, end)]
    await broker.declare(topology(back, there, again, end, *fan))
    seen = await collected(broker, end.name)

    for number, body in enumerate((b"first", b"second", b"third"), 1):
        await put(broker, there.name, body)
        await eventually(lambda number=number: len(seen) == number)  # type: ignore[misc]
        await eventually(lambda: has_ready(broker, again.name, 0))

    assert bodies(seen) == [b"first", b"second", b"third"]


async def test_dead_letters_of_a_full_target_wait_in_their_queue(scene: Scene, broker: FaultyBroker) -> None:
    graves, dead = scene.exchange("graves"), scene.queue("dead", max_length=1)
    queue = scene.queue("queue", dead_letter_exchange=graves.name)
    await broker.declare(topology(graves, dead, queue, Binding(graves.name, dead.name, "#")))
    await broker.consume(queue.name, lambda delivery: delivery.reject(), prefetch=10)

    await put(broker, queue.name, *[b"x"] * 20)

    (await arrival(broker, dead)).requeue()
    assert len(await empty(broker, dead.name)) < 20


FULL, OTHER = "full", "other"
MANY = 100
"""More than RabbitMQ hands over of one queue's dead letters before their target has taken some."""


async def retry(broker: FaultyBroker, capability: str, body: bytes) -> None:
    key = routing.task_key(capability, Priority.P1)
    await broker.publish(Message(body), exchange=routing.retry_exchange(100), routing_key=key)


async def test_retries_of_a_capability_whose_queue_is_full_hold_up_no_other(scene: Scene, broker: FaultyBroker) -> None:
    full, other = scene.name(FULL), scene.name(OTHER)
    await broker.declare(base_topology() + capability_queues(full, max_queued=1) + capability_queues(other))
    seen = await collected(broker, routing.task_queue(other, Priority.P1))
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
    await broker.declare(base_topology() + capability_queues(name))
    seen = await collected(broker, routing.task_queue(name, Priority.P1))

    await retry(broker, name, b"mine")

    await eventually(lambda: seen)
    queues = [death["queue"] for death in seen[0].message.headers["x-death"]]
    assert queues == [routing.retry_back_queue(name), routing.retry_queue(100)]


async def test_retry_of_a_capability_without_a_way_out_of_its_own_comes_back_as_well(
    scene: Scene, broker: FaultyBroker
) -> None:
    """Its agents run an earlier version."""
    name = scene.name(OTHER)
    await broker.declare(base_topology() + capability_queues(name).without({routing.retry_back_queue(name)}))
    seen = await collected(broker, routing.task_queue(name, Priority.P1))

    await retry(broker, name, b"mine")

    await eventually(lambda: seen)
    assert seen[0].message.body == b"mine"
