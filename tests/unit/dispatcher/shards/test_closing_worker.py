"""What lies on a shard worker that closes is lost to nobody: whoever has the shard next finds it where it came from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from coditect.broker.port import Delivery
from coditect.broker.topology import shard_queues
from coditect.errors import Unroutable
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.task import Task
from coditect.wire import routing
from coditect.wire.control import Started, started_message
from dispatcher.ledger.effects import Publication
from dispatcher.shards import worker as worker_module
from dispatcher.shards.results import ResultsConsumer
from dispatcher.shards.worker import ShardWorker
from tests.support import eventually
from tests.unit.dispatcher.lone_worker import CAPABILITY, ONLY, LoneWorker, open_worker, start_of

QUEUE = routing.results_queue(0)


@pytest.fixture
async def lone(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoneWorker]:
    """Its one node is published, and that is not cleared from the outbox yet."""
    async with open_worker() as opened:
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 3_600.0)
        await opened.start()
        await eventually(opened.published)
        yield opened


async def starts(lone: LoneWorker, nodes: Sequence[str]) -> Delivery:
    """What an agent tells about the nodes that it began."""
    broker, number = lone.ports.broker, lone.flight.publication
    await broker.declare(shard_queues(0))
    told = [Started("w", node, lone.flight.fence, number, AgentId("worker-1"), 1, 5) for node in nodes]
    await broker.publish(started_message(told), exchange=routing.RESULTS, routing_key="0")
    delivery = await broker.get(QUEUE)
    assert delivery is not None
    return delivery


async def left(lone: LoneWorker) -> int:
    """How many messages nobody has settled for good."""
    await lone.ports.broker.release()
    queue = lone.server.find(QUEUE)
    assert queue is not None
    return queue.stats.messages


@pytest.mark.parametrize("nodes", [("only",), ("only", "unknown"), ()])
async def test_starts_are_acked_when_they_are_recorded(lone: LoneWorker, nodes: Sequence[str]) -> None:
    delivery = await starts(lone, nodes)

    ResultsConsumer(lone.worker).take(delivery)

    await eventually(lambda: lone.flight.agent == ("worker-1" if nodes else ""))
    assert await left(lone) == 0


@pytest.mark.parametrize("closed", ["before", "after"])
async def test_starts_that_are_not_recorded_go_back(lone: LoneWorker, closed: str) -> None:
    delivery = await starts(lone, ["only"])
    if closed == "before":
        await lone.worker.close()

    ResultsConsumer(lone.worker).take(delivery)
    await lone.worker.close()

    assert await left(lone) == 1


async def test_what_is_to_be_published_anew_keeps_its_row_until_it_is(lone: LoneWorker) -> None:
    before = await lone.rows()
    successor = ShardWorker(lone.worker.lease, lone.ports, on_lost=lambda _: None, nudge=lambda: None)
    await successor.open()
    await successor.close()

    assert await lone.rows() == before != []


async def test_what_no_queue_took_keeps_its_row_until_the_ledger_knows(lone: LoneWorker) -> None:
    before, number = await lone.rows(), lone.flight.publication
    lone.worker._confirmed.take()

    lone.worker._published(Publication(ONLY, number, Task(CAPABILITY, Priority.P1, b"null")), Unroutable("No queue"))
    await lone.worker.close()

    assert await lone.rows() == before != []


async def test_what_the_broker_has_confirmed_leaves_no_row(lone: LoneWorker) -> None:
    before = await lone.rows()

    await lone.worker.close()

    assert (len(before), await lone.rows()) == (1, [])


async def test_what_the_broker_confirms_while_the_worker_closes_leaves_no_row(lone: LoneWorker) -> None:
    lone.server.block()
    await lone.say(start_of("later"))

    closing = asyncio.ensure_future(lone.worker.close())
    await eventually(lambda: lone.worker.closed)
    lone.server.unblock()
    await closing

    assert await lone.rows() == []
    assert lone.published() == 2, "the next owner publishes none of them"
