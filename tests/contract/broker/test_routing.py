from __future__ import annotations

import pytest

from coditect.broker.topology import Binding, ExchangeType, QueueType
from coditect.errors import Overloaded, Unroutable
from coditect.model.message import Message
from tests.contract.broker.scene import FaultyBroker, Scene, empty, own_headers, ready, topology


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
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
    ],
)
async def test_topic_exchange_follows_its_wildcards(
    scene: Scene, broker: FaultyBroker, pattern: str, key: str, matches: bool
) -> None:
    source, queue, other = scene.exchange("topic"), scene.queue("queue"), scene.queue("other")
    sentinel = Binding(source.name, other.name, key)
    await broker.declare(topology(source, queue, other, Binding(source.name, queue.name, pattern), sentinel))

    await broker.publish(Message(b"x"), exchange=source.name, routing_key=key)

    assert await empty(broker, other.name) == [b"x"]
    assert await empty(broker, queue.name) == ([b"x"] if matches else [])


async def test_direct_exchange_delivers_to_queues_of_the_same_key(scene: Scene, broker: FaultyBroker) -> None:
    source, one, two = scene.exchange("direct", ExchangeType.DIRECT), scene.queue("one"), scene.queue("two")
    await broker.declare(
        topology(source, one, two, Binding(source.name, one.name, "a.*"), Binding(source.name, two.name, "b"))
    )

    await broker.publish(Message(b"x"), exchange=source.name, routing_key="b")

    assert await empty(broker, two.name) == [b"x"]
    assert await empty(broker, one.name) == []
    with pytest.raises(Unroutable):
        await broker.publish(Message(b"y"), exchange=source.name, routing_key="a.b")


async def test_fanout_exchange_delivers_to_every_queue_and_keeps_the_key(scene: Scene, broker: FaultyBroker) -> None:
    source, one, two = scene.exchange("fanout", ExchangeType.FANOUT), scene.queue("one"), scene.queue("two")
    await broker.declare(
        topology(source, one, two, Binding(source.name, one.name), Binding(source.name, two.name, "ignored"))
    )

    await broker.publish(Message(b"x"), exchange=source.name, routing_key="its.own")

    assert await empty(broker, two.name) == [b"x"]
    delivery = await broker.get(one.name)
    assert delivery is not None
    assert (delivery.exchange, delivery.routing_key) == (source.name, "its.own")


async def test_queue_bound_twice_gets_a_message_once(scene: Scene, broker: FaultyBroker) -> None:
    source, queue = scene.exchange("topic"), scene.queue("queue")
    await broker.declare(
        topology(source, queue, Binding(source.name, queue.name, "a.#"), Binding(source.name, queue.name, "#.b"))
    )

    await broker.publish(Message(b"x"), exchange=source.name, routing_key="a.b")

    assert await empty(broker, queue.name) == [b"x"]


async def test_carbon_copies_go_to_their_keys_and_the_header_stays(scene: Scene, broker: FaultyBroker) -> None:
    source, one, two = scene.exchange("direct", ExchangeType.DIRECT), scene.queue("one"), scene.queue("two")
    await broker.declare(
        topology(source, one, two, Binding(source.name, one.name, "one"), Binding(source.name, two.name, "two"))
    )

    await broker.publish(Message(b"x", {"CC": ["two"]}), exchange=source.name, routing_key="one")

    assert await empty(broker, one.name) == [b"x"]
    delivery = await broker.get(two.name)
    assert delivery is not None
    assert delivery.routing_key == "one"
    assert own_headers(delivery.message) == {"CC": ["two"]}


async def test_carbon_copy_alone_makes_a_message_routable(scene: Scene, broker: FaultyBroker) -> None:
    queue = await scene.declared_queue(broker)

    await broker.publish(Message(b"x", {"CC": [queue]}), exchange="", routing_key=scene.name("nobody"))

    assert await empty(broker, queue) == [b"x"]


async def test_alternate_exchange_catches_what_has_no_queue(scene: Scene, broker: FaultyBroker) -> None:
    catch = scene.exchange("catch", ExchangeType.FANOUT)
    source = scene.exchange("source", alternate=catch.name)
    bound, caught = scene.queue("bound"), scene.queue("caught")
    await broker.declare(
        topology(
            catch,
            source,
            bound,
            caught,
            Binding(source.name, bound.name, "a"),
            Binding(catch.name, caught.name),
        )
    )

    await broker.publish(Message(b"routed"), exchange=source.name, routing_key="a")
    await broker.publish(Message(b"caught"), exchange=source.name, routing_key="b")

    assert await empty(broker, bound.name) == [b"routed"]
    delivery = await broker.get(caught.name)
    assert delivery is not None
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


async def test_an_event_comes_once_to_each_listener_whose_pattern_matches_any_of_its_keys(
    scene: Scene, broker: FaultyBroker
) -> None:
    source = scene.exchange("events")
    patterns = {"all": "#", "type": "task.*", "one": "task.*.id:task", "other": "task.*.other"}
    queues = {name: scene.queue(name, QueueType.CLASSIC) for name in patterns}
    bound = [Binding(source.name, queues[name].name, pattern) for name, pattern in patterns.items()]
    await broker.declare(topology(source, *queues.values(), *bound))

    event = Message(b"x", {"CC": ["task.done.id:task"]})
    await broker.publish(event, exchange=source.name, routing_key="task.done")

    assert [await empty(broker, queues[name].name) for name in patterns] == [[b"x"], [b"x"], [b"x"], []]
