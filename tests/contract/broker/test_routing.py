from __future__ import annotations

from typing import Any

import pytest

from coditect.broker.topology import Binding, ExchangeType, QueueType
from coditect.errors import Overloaded, Unroutable
from coditect.model.message import Message
from tests.contract.broker.scene import FaultyBroker, Scene, empty, got, own_headers, ready, topology

DIRECT, FANOUT, TOPIC = ExchangeType.DIRECT, ExchangeType.FANOUT, ExchangeType.TOPIC
WILDCARDS = [
    ("code.review.p1", "code.review.p1", True),
    ("code.review.p1", "code.review.p2", False),
    ("code.*.p1", "code.review.p1", True),
    ("code.*", "code.review.p1", False),
    ("code.#", "code.review.p1", True),
    ("code.#", "code", True),
    ("#.p1", "code.review.p1", True),
    ("#", "", True),
    ("*", "", False),
    ("#", "anything.at.all", True),
    ("*.#.p1", "code.p1", True),
    ("a.#.b.*", "a.b.b.c", True),
    ("a.#.b.*", "a.c", False),
]
LISTENERS = [("all", "#"), ("type", "task.*"), ("one", "task.*.id:task"), ("other", "task.*.other")]


@pytest.mark.parametrize(
    ("kind", "bindings", "key", "copies", "reached"),
    [
        (DIRECT, [("one", "a.*"), ("two", "a.b")], "a.b", [], ["two"]),
        (FANOUT, [("one", ""), ("two", "ignored")], "its.own", [], ["one", "two"]),
        (TOPIC, [("one", "a.#"), ("one", "#.b")], "a.b", [], ["one"]),
        (DIRECT, [("one", "one"), ("two", "two")], "one", ["two"], ["one", "two"]),
        (TOPIC, LISTENERS, "task.done", ["task.done.id:task"], ["all", "type", "one"]),
        *(
            (TOPIC, [("sentinel", key), ("one", pattern)], key, [], ["sentinel", *["one"] * matches])
            for pattern, key, matches in WILDCARDS
        ),
    ],
)
async def test_message_reaches_each_queue_that_is_bound_to_one_of_its_keys_once(
    scene: Scene,
    broker: FaultyBroker,
    kind: ExchangeType,
    bindings: list[tuple[str, str]],
    key: str,
    copies: list[str],
    reached: list[str],
) -> None:
    source = scene.exchange("source", kind)
    queues = {name: scene.queue(name) for name, _ in bindings}
    bound = [Binding(source.name, queues[name].name, pattern) for name, pattern in bindings]
    await broker.declare(topology(source, *queues.values(), *bound))
    headers: dict[str, Any] = {"CC": copies} if copies else {}

    await broker.publish(Message(b"x", headers), exchange=source.name, routing_key=key)

    for name, queue in queues.items():
        delivery = await broker.get(queue.name)
        assert (delivery is not None) == (name in reached), name
        if delivery is not None:
            assert (delivery.exchange, delivery.routing_key) == (source.name, key)
            assert own_headers(delivery.message) == headers
            assert await broker.get(queue.name) is None


async def test_carbon_copy_alone_makes_a_message_routable(scene: Scene, broker: FaultyBroker, queue: str) -> None:
    await broker.publish(Message(b"x", {"CC": [queue]}), exchange="", routing_key=scene.name("nobody"))

    assert await empty(broker, queue) == [b"x"]


async def test_alternate_exchange_catches_what_has_no_queue(scene: Scene, broker: FaultyBroker) -> None:
    catch = scene.exchange("catch", ExchangeType.FANOUT)
    source = scene.exchange("source", alternate=catch.name)
    bound, caught = scene.queue("bound"), scene.queue("caught")
    bindings = [Binding(source.name, bound.name, "a"), Binding(catch.name, caught.name)]
    await broker.declare(topology(catch, source, bound, caught, *bindings))

    await broker.publish(Message(b"routed"), exchange=source.name, routing_key="a")
    await broker.publish(Message(b"caught"), exchange=source.name, routing_key="b")

    assert await empty(broker, bound.name) == [b"routed"]
    delivery = await got(broker, caught.name)
    assert (delivery.message.body, delivery.exchange, delivery.routing_key) == (b"caught", source.name, "b")


async def test_alternate_exchange_without_a_queue_leaves_it_unroutable(scene: Scene, broker: FaultyBroker) -> None:
    catch = scene.exchange("catch", ExchangeType.FANOUT)
    source = scene.exchange("source", alternate=catch.name)
    await broker.declare(topology(catch, source))

    with pytest.raises(Unroutable):
        await broker.publish(Message(b"x"), exchange=source.name, routing_key="a")


async def test_message_refused_by_one_full_queue_stays_in_the_other(scene: Scene, broker: FaultyBroker) -> None:
    source, full, free = (
        scene.exchange("fan", ExchangeType.FANOUT),
        scene.queue("full", QueueType.CLASSIC, max_length=1),
        scene.queue("free", QueueType.CLASSIC),
    )
    await broker.declare(topology(source, full, free, Binding(source.name, full.name), Binding(source.name, free.name)))

    with pytest.raises(Overloaded):
        for _ in range(20):
            await broker.publish(Message(b"x"), exchange=source.name, routing_key="", wait_when_full=False)

    assert (await ready(broker, full.name), await ready(broker, free.name)) == (1, 2)
