"""What a test can do to the in-memory broker and its network, and what its clients see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from coditect.aio.network import Way
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.broker import NOTICED_SECONDS
from coditect.broker.port import Delivery
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.errors import BrokerUnavailable, Overloaded, PublishUnconfirmed
from coditect.model.message import Message
from tests.unit.broker.virtual_time import in_virtual_time

QUEUE = Queue("queue", delivery_limit=100)
NAME = "parted"
SETTLED_SECONDS = 1.0
"""Virtual: enough for every reconnect and resubscription."""


@asynccontextmanager
async def declared() -> AsyncIterator[tuple[MemoryServer, MemoryBroker]]:
    """A server with the queue, and a process that is connected to it."""
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        yield server, broker


async def put(broker: MemoryBroker, *bodies: bytes, **more: float) -> None:
    for body in bodies:
        message = Message(body, message_id=body.decode())
        await broker.publish(message, exchange="", routing_key="queue", **more)  # type: ignore[arg-type]


async def empty(broker: MemoryBroker) -> list[bytes]:
    bodies = []
    while (delivery := await broker.get("queue")) is not None:
        bodies.append(delivery.message.body)
        delivery.ack()
    return bodies


@in_virtual_time
async def test_stopped_broker_gives_what_was_unsettled_to_the_same_consumer_when_it_is_back() -> None:
    seen: list[Delivery] = []
    lost: list[int] = []
    async with declared() as (server, broker):
        await broker.consume("queue", seen.append, prefetch=2, on_lost=lambda: lost.append(1))
        await put(broker, b"0", b"1", b"2")
        await asyncio.sleep(0)

        server.stop()
        down = broker.connected
        await asyncio.sleep(10)
        during = len(seen)
        server.start()
        await asyncio.sleep(SETTLED_SECONDS)

        assert not down
        assert during == 2
        assert lost == [1]
        assert broker.connected
        assert [(one.message.body, one.lost, one.delivery_count) for one in seen] == [
            (b"0", True, 0),
            (b"1", True, 0),
            (b"0", False, 1),
            (b"1", False, 1),
        ]


@in_virtual_time
async def test_publish_during_an_outage_waits_until_the_broker_is_back_or_its_time_is_over() -> None:
    async with declared() as (server, broker):
        server.stop()
        publish = asyncio.create_task(put(broker, b"x"))
        with pytest.raises(BrokerUnavailable):
            await put(broker, b"never sent", timeout_seconds=20)

        waiting, took = not publish.done(), asyncio.get_running_loop().time()
        server.start()
        await publish

        assert waiting
        assert took == pytest.approx(20, abs=0.1)
        assert await empty(broker) == [b"x"]


@in_virtual_time
async def test_every_call_during_a_long_outage_ends_in_broker_unavailable() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        server.stop()

        for call in (
            broker.declare(Topology(queues=(QUEUE,))),
            broker.stats("queue"),
            broker.get("queue"),
            broker.delete_queue("queue"),
            broker.consume("queue", lambda _: None, prefetch=1),
        ):
            with pytest.raises(BrokerUnavailable):
                await call


@in_virtual_time
async def test_process_that_finds_no_broker_gives_up() -> None:
    server = MemoryServer()
    server.stop()

    with pytest.raises(BrokerUnavailable):
        async with MemoryBroker(server):
            pass


@in_virtual_time
async def test_wiped_broker_gets_the_entities_again_and_has_lost_the_messages() -> None:
    seen: list[Delivery] = []
    async with declared() as (server, broker):
        await put(broker, b"before")
        server.stop()
        server.start(lose_messages=True)
        await asyncio.sleep(SETTLED_SECONDS)

        await broker.consume("queue", seen.append, prefetch=1)
        await put(broker, b"after")
        await asyncio.sleep(0)

        assert [one.message.body for one in seen] == [b"after"]


@in_virtual_time
async def test_publish_that_met_an_alarm_is_unconfirmed_and_delivered_later() -> None:
    seen: list[Delivery] = []
    async with declared() as (server, broker):
        await broker.consume("queue", seen.append, prefetch=10)
        await put(broker, b"before")
        server.block()

        with pytest.raises(PublishUnconfirmed):
            await put(broker, b"under way", timeout_seconds=1)
        blocked = broker.blocked
        with pytest.raises(Overloaded):
            await put(broker, b"held back", timeout_seconds=1)
        server.unblock()
        await asyncio.sleep(0)

        assert blocked
        assert not broker.blocked
        assert [one.message.body for one in seen] == [b"before", b"under way"]


@in_virtual_time
async def test_what_cannot_be_restored_is_tried_again_until_it_can() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as one:
        await one.declare(Topology(queues=(QUEUE,)))
        server.stop()
        server.start(lose_messages=True)
        async with MemoryBroker(server) as two:
            await two.declare(Topology(queues=(Queue("queue", QueueType.CLASSIC),)))
            await asyncio.sleep(SETTLED_SECONDS)
            apart = one.connected

            await two.delete_queue("queue")
            await asyncio.sleep(SETTLED_SECONDS)

            assert not apart
            assert one.connected
            assert await two.stats("queue") is not None


@asynccontextmanager
async def consuming(server: MemoryServer, seen: list[Delivery]) -> AsyncIterator[tuple[MemoryBroker, MemoryBroker]]:
    """A process that consumes a queue, and one that no fault touches."""
    async with MemoryBroker(server, name=NAME) as broker, MemoryBroker(server) as other:
        await broker.declare(Topology(queues=(QUEUE,)))
        await broker.consume("queue", seen.append, prefetch=50)
        yield broker, other


def bodies(seen: list[Delivery]) -> list[bytes]:
    return [one.message.body for one in seen]


@in_virtual_time
async def test_mute_process_is_given_messages_and_what_it_says_arrives_when_it_is_healed() -> None:
    server, seen = MemoryServer(), list[Delivery]()
    async with consuming(server, seen) as (broker, other):
        await put(other, b"0")
        await asyncio.sleep(0)
        broker.path.cut_off(Way.TO_SERVER)
        seen[0].ack()
        publish = asyncio.create_task(put(broker, b"2"))
        await put(other, b"1")
        await asyncio.sleep(1)
        heard, unsettled, waiting = bodies(seen), server.queue("queue").in_hand, not publish.done()

        broker.path.heal()
        await publish
        await asyncio.sleep(0)

        assert (heard, unsettled, waiting) == ([b"0", b"1"], 2, True)
        assert (bodies(seen), server.queue("queue").in_hand) == ([b"0", b"1", b"2"], 2)


@in_virtual_time
async def test_deaf_process_is_heard_and_what_it_is_sent_arrives_when_it_is_healed() -> None:
    server, seen = MemoryServer(), list[Delivery]()
    async with consuming(server, seen) as (broker, _):
        broker.path.cut_off(Way.TO_CLIENT)
        publish = asyncio.create_task(put(broker, b"0"))
        await asyncio.sleep(1)
        heard, taken, waiting = len(seen), server.queue("queue").in_hand, not publish.done()

        broker.path.heal()
        await publish
        await asyncio.sleep(0)

        assert (heard, taken, waiting) == (0, 1, True)
        assert bodies(seen) == [b"0"]


@in_virtual_time
async def test_what_a_mute_process_settled_is_given_to_another_when_its_connection_is_closed() -> None:
    server, seen = MemoryServer(), list[Delivery]()
    async with consuming(server, seen) as (broker, other):
        await put(other, b"0")
        await asyncio.sleep(0)
        broker.path.cut_off(Way.TO_SERVER)
        seen[0].ack()

        await server.evict(NAME)

        again = await other.get("queue")
        assert again is not None
        assert again.delivery_count == 1
        broker.path.heal()
        assert server.queue("queue").in_hand == 1


@in_virtual_time
async def test_publish_of_a_mute_process_whose_connection_was_closed_is_sent_once() -> None:
    server, seen = MemoryServer(), list[Delivery]()
    async with consuming(server, seen) as (broker, _):
        broker.path.cut_off(Way.TO_SERVER)
        publish = asyncio.create_task(put(broker, b"0"))
        await asyncio.sleep(1)
        await server.evict(NAME)

        broker.path.heal()
        await publish
        await asyncio.sleep(1)

        assert bodies(seen) == [b"0"]


@in_virtual_time
async def test_silence_is_noticed_after_a_while_and_ends_when_it_is_healed() -> None:
    async with MemoryBroker(MemoryServer()) as broker:
        broker.path.cut_off(Way.TO_CLIENT)
        await asyncio.sleep(NOTICED_SECONDS - 0.1)
        before = broker.connected, broker.answering
        await asyncio.sleep(0.2)
        silent = broker.connected, broker.answering
        broker.path.heal()

        assert (before, silent) == ((True, True), (False, False))
        assert (broker.connected, broker.answering) == (True, True)


@in_virtual_time
async def test_slow_network_takes_its_time_each_way_and_keeps_the_order() -> None:
    server, seen, random = MemoryServer(), list[Delivery](), Random(1)
    async with consuming(server, seen) as (broker, other):
        broker.path.slow(lambda: 0.5)
        began = asyncio.get_running_loop().time()
        await put(broker, b"first")
        took = asyncio.get_running_loop().time() - began

        broker.path.slow(lambda: random.uniform(0.0, 1.0))
        many = [str(number).encode() for number in range(20)]
        for body in many:
            await put(other, body)
        await asyncio.sleep(1.5)

        assert 1.0 <= took < 1.01
        assert bodies(seen) == [b"first", *many]
