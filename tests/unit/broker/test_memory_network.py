"""What a process sees of the in-memory broker over a network that is slow, or cut one way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from coditect.aio.network import Way
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.broker import NOTICED_SECONDS
from coditect.broker.port import Delivery
from coditect.broker.topology import Queue, Topology
from coditect.model.message import Message
from tests.unit.broker.virtual_time import in_virtual_time

NAME = "parted"


@asynccontextmanager
async def consuming(server: MemoryServer, seen: list[Delivery]) -> AsyncIterator[tuple[MemoryBroker, MemoryBroker]]:
    """A process that consumes a queue, and one that no fault touches."""
    async with MemoryBroker(server, name=NAME) as broker, MemoryBroker(server) as other:
        await broker.declare(Topology(queues=(Queue("queue", delivery_limit=100),)))
        await broker.consume("queue", seen.append, prefetch=50)
        yield broker, other


async def put(broker: MemoryBroker, body: bytes) -> None:
    await broker.publish(Message(body, message_id=body.decode()), exchange="", routing_key="queue")


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
