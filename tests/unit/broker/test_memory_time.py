"""What the in-memory broker does by itself as time passes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.queue import DEAD_LETTER_RETRY_SECONDS, Reason, is_cycle
from coditect.broker.topology import Binding, Exchange, ExchangeType, Queue, QueueType, Topology
from coditect.model.ids import TaskId
from coditect.model.message import Message
from tests.unit.broker.virtual_time import in_virtual_time

DEAD = Queue("dead", delivery_limit=100)


async def put(broker: MemoryBroker, queue: str, body: bytes = b"x", **more: int) -> None:
    await broker.publish(Message(body, **more), exchange="", routing_key=queue)  # type: ignore[arg-type]


async def ready(broker: MemoryBroker, queue: str) -> int | None:
    stats = await broker.stats(queue)
    return None if stats is None else stats.messages


@in_virtual_time
async def test_message_behind_a_longer_lived_head_does_not_expire_before_it() -> None:
    async with MemoryBroker(MemoryServer()) as broker:
        await broker.declare(Topology(queues=(Queue("queue", delivery_limit=100),)))
        await put(broker, "queue", b"long", expiration_ms=5_000)
        await put(broker, "queue", b"short", expiration_ms=100)

        await asyncio.sleep(4)
        behind = await ready(broker, "queue")
        await asyncio.sleep(2)

        assert behind == 2
        assert await ready(broker, "queue") == 0


@in_virtual_time
async def test_dead_letter_without_a_target_is_kept_and_handed_over_when_there_is_one() -> None:
    async with MemoryBroker(MemoryServer()) as broker:
        source = Queue("source", delivery_limit=100, dead_letter_exchange="graves", message_ttl_ms=100)
        await broker.declare(Topology(queues=(source,)))
        await put(broker, "source")
        await asyncio.sleep(1)
        counted = await ready(broker, "source")
        await broker.declare(
            Topology((Exchange("graves", ExchangeType.FANOUT),), (DEAD,), (Binding("graves", "dead"),))
        )

        await asyncio.sleep(1)
        too_early = await ready(broker, "dead")
        await asyncio.sleep(DEAD_LETTER_RETRY_SECONDS)

        assert (counted, too_early) == (0, 0)
        assert await ready(broker, "dead") == 1


@in_virtual_time
async def test_kept_dead_letter_survives_a_restart_and_is_tried_at_once() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        source = Queue("source", delivery_limit=100, dead_letter_exchange="", dead_letter_routing_key="dead")
        await broker.declare(Topology(queues=(source,)))
        await broker.consume("source", lambda one: one.reject(), prefetch=1)
        await put(broker, "source")
        await asyncio.sleep(1)
        await broker.declare(Topology(queues=(DEAD,)))

        server.stop()
        server.start()

        assert await ready(broker, "dead") == 1


@in_virtual_time
async def test_classic_queue_loses_a_dead_letter_without_a_target() -> None:
    async with MemoryBroker(MemoryServer()) as broker:
        source = Queue(
            "source", QueueType.CLASSIC, dead_letter_exchange="", dead_letter_routing_key="dead", message_ttl_ms=10
        )
        await broker.declare(Topology(queues=(source,)))
        await put(broker, "source")
        await asyncio.sleep(1)

        await broker.declare(Topology(queues=(DEAD,)))
        await asyncio.sleep(2 * DEAD_LETTER_RETRY_SECONDS)

        assert await ready(broker, "dead") == 0


@in_virtual_time
async def test_unused_queue_expires_after_its_time_and_use_starts_it_anew() -> None:
    async with MemoryBroker(MemoryServer()) as broker:
        queue = Queue("queue", QueueType.CLASSIC, expires_ms=10_000)
        await broker.declare(Topology(queues=(queue,)))

        await asyncio.sleep(9)
        still_there = await broker.stats("queue")
        await asyncio.sleep(9)
        used = await broker.get("queue")
        await asyncio.sleep(9)
        consumer = await broker.consume("queue", lambda _: None, prefetch=1)
        await asyncio.sleep(60)
        consumed = await broker.stats("queue")
        await consumer.cancel()
        await asyncio.sleep(11)

        assert still_there is not None
        assert used is None
        assert consumed is not None
        assert await broker.stats("queue") is None


@in_virtual_time
async def test_outage_does_not_count_towards_a_queues_expiry() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(Topology(queues=(Queue("queue", QueueType.CLASSIC, expires_ms=10_000),)))
        await put(broker, "queue")
        server.stop()
        await asyncio.sleep(60)
        server.start()
        await asyncio.sleep(5)

        assert await ready(broker, "queue") == 1


@in_virtual_time
async def test_message_that_expired_during_an_outage_is_dead_lettered_at_its_end() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        dead = Queue("dead", delivery_limit=100)
        source = Queue(
            "source", delivery_limit=100, dead_letter_exchange="", dead_letter_routing_key="dead", message_ttl_ms=5_000
        )
        await broker.declare(Topology(queues=(dead, source)))
        await put(broker, "source")
        server.stop()
        await asyncio.sleep(60)
        server.start()

        assert await ready(broker, "dead") == 1


@dataclass(frozen=True)
class FixedClock:
    """2026-01-01, for ever."""

    def now_ms(self) -> int:
        return 1_767_225_600_999

    def chance(self) -> float:
        return 0.5

    def new_id(self) -> TaskId:
        return TaskId("id")


@in_virtual_time
async def test_death_is_dated_by_the_clock_to_the_second() -> None:
    async with MemoryBroker(MemoryServer(clock=FixedClock())) as broker:
        source = Queue(
            "source", delivery_limit=100, dead_letter_exchange="", dead_letter_routing_key="dead", message_ttl_ms=5
        )
        await broker.declare(Topology(queues=(DEAD, source)))
        await put(broker, "source")
        await asyncio.sleep(1)

        delivery = await broker.get("dead")
        assert delivery is not None
        assert delivery.message.headers["x-death"][0]["time"].isoformat() == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("deaths", "reason", "cycle"),
    [
        (None, Reason.EXPIRED, False),
        ("hostile", Reason.EXPIRED, False),
        (["hostile"], Reason.EXPIRED, False),
        ([{"queue": "target", "reason": "expired"}], Reason.EXPIRED, True),
        ([{"queue": "target", "reason": "expired"}], Reason.REJECTED, False),
        ([{"queue": "other", "reason": "expired"}], Reason.EXPIRED, False),
        ([{"queue": "o", "reason": "rejected"}, {"queue": "target", "reason": "expired"}], Reason.EXPIRED, False),
        ([{"queue": "o", "reason": "expired"}, {"queue": "target", "reason": "delivery_limit"}], Reason.EXPIRED, True),
        ([{"queue": "target", "reason": "rejected"}], Reason.DELIVERY_LIMIT, False),
    ],
)
def test_cycle_is_a_way_back_on_which_nobody_rejected(deaths: object, reason: Reason, cycle: bool) -> None:
    headers = {} if deaths is None else {"x-death": deaths}

    assert is_cycle(headers, "target", reason) is cycle
