"""What a test can do to the in-memory broker, and what its clients see."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.errors import BrokerUnavailable, Overloaded, PublishUnconfirmed
from coditect.model.message import Message
from coditect.wire import tasks
from tests.unit.broker.virtual_time import in_virtual_time

QUEUE = Queue("queue", delivery_limit=100)
SETTLED_SECONDS = 1.0
"""Virtual: enough for every reconnect and resubscription."""


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
    server = MemoryServer()
    seen: list[Delivery] = []
    lost: list[int] = []
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
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
async def test_publish_during_an_outage_waits_and_succeeds_when_the_broker_is_back() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        server.stop()
        publish = asyncio.create_task(put(broker, b"x"))
        await asyncio.sleep(20)

        waiting = not publish.done()
        server.start()
        await publish

        assert waiting
        assert await empty(broker) == [b"x"]


@in_virtual_time
async def test_publish_during_an_outage_longer_than_its_time_was_never_sent() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        server.stop()

        with pytest.raises(BrokerUnavailable):
            await put(broker, b"x", timeout_seconds=2)
        took = asyncio.get_running_loop().time()
        server.start()

        assert took == pytest.approx(2, abs=0.1)
        assert await empty(broker) == []


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
    server = MemoryServer()
    seen: list[Delivery] = []
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
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
    server = MemoryServer()
    seen: list[Delivery] = []
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
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
async def test_publishes_wait_for_the_alarm_to_end() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        server.block()
        publishes = asyncio.gather(put(broker, b"0"), put(broker, b"1"))
        await asyncio.sleep(5)

        waiting = not publishes.done()
        server.unblock()
        await publishes

        assert waiting
        assert sorted(await empty(broker)) == [b"0", b"1"]


@in_virtual_time
async def test_broker_that_dies_under_an_alarm_takes_the_message_once_after_it() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        server.block()
        publish = asyncio.create_task(put(broker, b"x"))
        await asyncio.sleep(1)

        server.stop()
        server.start()
        await publish

        assert await empty(broker) == [b"x"]


@in_virtual_time
async def test_lost_confirm_publishes_the_same_message_again() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        server.lose_next_confirms(2)

        await put(broker, b"id-1")
        await put(broker, b"id-2")

        sent = [await broker.get("queue") for _ in range(4)]
        assert [(one.message.body, tasks.SENT_AGAIN in one.message.headers) for one in sent if one is not None] == [
            (b"id-1", False),
            (b"id-1", True),
            (b"id-1", True),
            (b"id-2", False),
        ]


@in_virtual_time
async def test_confirms_lost_until_the_time_is_over_leave_the_outcome_unknown() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        server.lose_next_confirms(1_000_000)

        with pytest.raises(PublishUnconfirmed):
            await put(broker, b"x", timeout_seconds=0.1)

        assert set(await empty(broker)) == {b"x"}


@in_virtual_time
async def test_consumer_canceled_by_the_broker_subscribes_again_and_keeps_what_it_has() -> None:
    server = MemoryServer()
    seen: list[Delivery] = []
    lost: list[int] = []
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        consumer = await broker.consume("queue", seen.append, prefetch=1, on_lost=lambda: lost.append(1))
        await put(broker, b"held", b"next")
        await asyncio.sleep(0)

        server.cancel_consumers("queue")
        deaf = (consumer.active, broker.connected)
        await asyncio.sleep(SETTLED_SECONDS)
        seen[0].ack()

        assert deaf == (False, False)
        assert (consumer.active, broker.connected, lost) == (True, True, [1])
        assert [one.message.body for one in seen] == [b"held", b"next"]
        assert consumer.unsettled == 1


@in_virtual_time
async def test_dropped_connection_leaves_the_others_alone() -> None:
    server = MemoryServer()
    seen: list[Delivery] = []
    lost: list[str] = []
    async with MemoryBroker(server, name="one") as one, MemoryBroker(server, name="two") as two:
        await one.declare(Topology(queues=(QUEUE,)))
        await two.consume("queue", seen.append, prefetch=1, on_lost=lambda: lost.append("two"))

        one.drop()
        await put(two, b"x")
        await asyncio.sleep(0)

        assert two.connected
        assert not one.connected
        assert (len(seen), lost) == (1, [])


@in_virtual_time
async def test_delivery_on_its_way_when_the_connection_breaks_is_not_handed_over() -> None:
    server = MemoryServer()
    seen: list[Delivery] = []
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(QUEUE,)))
        await put(broker, b"x")
        await broker.consume("queue", seen.append, prefetch=1)

        broker.drop()
        await asyncio.sleep(SETTLED_SECONDS)

        assert [(one.lost, one.delivery_count) for one in seen] == [(False, 1)]


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
