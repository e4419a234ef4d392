"""A dispatcher that was paused and does not know: what it does late is refused, counted and said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn

import pytest

from coditect import Workflow
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Consumer
from coditect.client.client import Client
from coditect.errors import BrokerUnavailable, CoditectError, NotFound, TopologyMismatch
from coditect.model.result import Outcome, Status
from coditect.registry.memory import MemoryRegistry
from coditect.wire import routing
from coditect.wire.control import Verb, request
from dispatcher.ledger.commands import Finished
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import INDEXED
from dispatcher.ledger.ownership import leases, shards
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.shards import worker as worker_module
from dispatcher.shards.ownership import ShardOwnership
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.transaction import Transaction
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import Change, Job, Proposal, ToolRequest
from tests.support import eventually, patient
from tests.unit.dispatcher.lone_worker import ONLY, open_worker


def take_over(tr: Transaction, owner: str) -> None:
    """Another takes the only shard, as if its owner had stood still for long."""
    leases.leave(tr, owner)
    leases.renew(tr, "other", 1)
    assert leases.acquire(tr, shards.lease_name(0), "other") is not None


async def is_indexed(database: MemoryDatabase) -> bool:
    return await database.read(lambda tr: tr.get(INDEXED.pack())) == b""


async def test_late_commit_is_refused_counted_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 3_600_000)
    server, registry = MemoryServer(), MemoryRegistry()
    flow = Workflow("asks")
    flow.approval("Go on?", name="gate")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(MemoryDatabase())
        own = await enter(MemoryBroker(server, name="dispatcher"))
        plane = running_dispatcher(
            broker=own, registry=registry, clock=SystemClock(), database=database, options=DispatcherOptions(shards=1)
        )
        ownership = (await enter(plane)).ownership
        mine = await enter(MemoryBroker(server, name="client"))
        client = await enter(Client(mine, registry, clock=SystemClock(), name="client-test"))
        run = await client.start(flow)
        await eventually(lambda: is_indexed(database))  # else the retention writes that beside us
        await database.run(lambda tr: take_over(tr, ownership.owner))
        before = await database.read(lambda tr: tr.get_range(b"", b"\xff"))

        await mine.publish(
            request(Verb.CANCEL, {"workflow": run.id}, reply_to=None, correlation_id="late"),
            exchange=routing.CONTROL,
            routing_key="0",
        )
        await eventually(lambda: ownership.figures()["refused"] == 1)

        await eventually(lambda: not ownership.workers)
        assert await database.read(lambda tr: tr.get_range(b"", b"\xff")) == before
        assert "A shard is another's by now" in caplog.text
        stats = await mine.stats(routing.control_queue(0))
        assert stats is not None
        assert stats.messages == 1, "the new owner gets the request"


async def test_late_commit_of_a_worker_that_closes_is_refused_counted_and_said_with_the_epochs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_worker() as lone:
        monkeypatch.setattr(
            worker_module, "IDLE_SECONDS", 3_600.0
        )  # what is confirmed is cleared by the closing shard worker
        await lone.start()
        await eventually(lambda: lone.published() == 1)
        await lone.database.run(lambda tr: take_over(tr, "me"))

        await lone.worker.close()

        assert lone.commits_refused == 1
        assert len(await lone.rows()) == 1, "the new owner decides about it"
    (said,) = [record for record in caplog.records if record.message == "A shard is another's by now"]
    facts = vars(said)
    assert said.levelname == "WARNING"
    assert (facts["shard"], facts["owner"], facts["epoch"]) == (0, "me", 1)
    assert (facts["owner_now"], facts["epoch_now"]) == ("other", 2)


class Deaf(MemoryBroker):
    """Does not answer when the first shard's results are to be consumed, so many times."""

    deaf = 0
    error: CoditectError = BrokerUnavailable("The fault that was asked for")

    async def consume(self, queue: str, *args: Any, **options: Any) -> Consumer:
        if self.deaf and queue == routing.results_queue(0):
            self.deaf -= 1
            raise self.error
        return await super().consume(queue, *args, **options)


@asynccontextmanager
async def one_shard(
    kind: type[MemoryBroker] = MemoryBroker, store: MemoryDatabase | None = None
) -> AsyncIterator[tuple[Any, ShardOwnership]]:
    """Yield a dispatcher's broker and its ownership of the only shard."""
    async with store or MemoryDatabase() as database, kind(MemoryServer(), name="dispatcher") as own:
        plane = running_dispatcher(
            broker=own,
            registry=MemoryRegistry(),
            clock=SystemClock(),
            database=database,
            options=DispatcherOptions(shards=1),
        )
        async with plane as running:
            yield own, running.ownership


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), NotFound("gone"), TopologyMismatch("another")])
async def test_shard_whose_queues_could_not_be_consumed_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, error: CoditectError
) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 10)
    async with one_shard(Deaf) as (own, ownership):
        own.deaf, own.error = 2, error
        await ownership._close(0)  # a step opens it anew, maybe before this returns

        async def heard() -> bool:
            return await consumers_of_results(own) == 1

        await eventually(lambda: not own.deaf)
        await eventually(heard)
        await eventually(lambda: 0 in ownership.workers)


class Together(MemoryBroker):
    """Answers no shard until all four have asked to consume their results."""

    all_asked: asyncio.Barrier

    async def consume(self, queue: str, *args: Any, **options: Any) -> Consumer:
        if queue in {routing.results_queue(shard) for shard in range(4)}:
            await self.all_asked.wait()
        return await super().consume(queue, *args, **options)


async def hang() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


class HungGraph(MemoryTaskGraph):
    """Never answers, as a Redis that was stopped."""

    async def incarnation(self, store: str, begun: int = 0) -> int:
        await hang()

    async def create(self, jobs: Sequence[Job]) -> Sequence[Job]:
        await hang()

    async def tell(self, changes: Sequence[Change]) -> None:
        await hang()

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        await hang()

    async def requests(self, shards: Collection[int]) -> list[ToolRequest]:
        await hang()


async def test_all_shards_are_opened_together_while_redis_hangs() -> None:
    """One after the other they took two seconds each on a busy machine, and the start failed."""
    options = DispatcherOptions(shards=4)
    async with MemoryDatabase() as store, Together(MemoryServer(), name="dispatcher") as broker:
        broker.all_asked = asyncio.Barrier(4)
        for _ in range(2):  # the second finds a store of which Redis may know
            plane = running_dispatcher(
                broker=broker,
                registry=MemoryRegistry(),
                clock=SystemClock(),
                database=store,
                options=options,
                graph=HungGraph(),
            )
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(patient(2)):
                    running = await stack.enter_async_context(plane)

                assert len(running.ownership.workers) == 4


class OfOneProcess(MemoryDatabase):
    """Says that no other process can have it open, as a store in a file does."""

    exclusive = True


async def test_shard_of_a_process_that_died_is_taken_at_once_where_no_other_can_be_alive() -> None:
    store = OfOneProcess()
    async with store:
        await store.run(lambda tr: shards.fix_count(tr, 1))
        assert (await store.run(lambda tr: shards.step(tr, "dead", 1, count=1))).owned

    async with one_shard(store=store) as (_, ownership):
        assert set(ownership.workers) == {0}


async def test_shard_that_another_had_for_a_while_gets_a_worker_that_knows_nothing_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 10)

    def come_and_go(tr: Transaction, owner: str) -> None:
        take_over(tr, owner)
        leases.leave(tr, "other")

    async with MemoryDatabase() as store, one_shard(store=store) as (_, ownership):
        await eventually(lambda: is_indexed(store))  # else that is refused, and tells of the loss
        before = ownership.workers[0]
        await store.run(lambda tr: come_and_go(tr, ownership.owner))

        await eventually(lambda: ownership.workers.get(0, before) is not before)
        assert before.closed
        assert ownership.workers[0].lease.epoch == before.lease.epoch + 2
        assert ownership.figures()["refused"] == 0, "no commit had to tell of the loss"


async def consumers_of_results(broker: MemoryBroker) -> int:
    stats = await broker.stats(routing.results_queue(0))
    assert stats is not None
    return stats.consumers


async def test_shard_that_is_lost_while_it_is_opened_leaves_no_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer of nobody would return every result at once, for ever."""
    monkeypatch.setattr(shards, "STEP_MS", 10)
    async with one_shard() as (own, ownership):
        checks, check = 0, ownership._check

        async def lost_meanwhile(worker: ShardWorker) -> None:
            nonlocal checks
            checks += 1
            await check(worker)
            ownership._returns += 1  # a new connection, so that the marker is asked for again
            if checks == 2:
                await ownership._close(0)

        monkeypatch.setattr(ownership, "_check", lost_meanwhile)
        await ownership._close(0)

        await eventually(lambda: checks == 4)  # opened twice
        await eventually(lambda: 0 in ownership._consumers and len(ownership._consumers[0]) == 2)
        assert await consumers_of_results(own) == 1


async def test_shard_that_two_close_at_once_keeps_its_next_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 10)
    async with one_shard() as (own, ownership):
        first, canceled, cancel = ownership.workers[0], asyncio.Event(), ownership._cancel

        async def slow(consumers: Sequence[Consumer]) -> None:
            await cancel(consumers)
            if consumers:
                await canceled.wait()

        monkeypatch.setattr(ownership, "_cancel", slow)
        closing = asyncio.ensure_future(ownership._close(0))
        await eventually(lambda: 0 not in ownership._consumers)
        await ownership._close(0)
        await eventually(lambda: len(ownership._consumers.get(0, ())) == 2)
        second = ownership.workers[0]
        canceled.set()
        await closing

        assert ownership.workers[0] is second is not first
        assert not second.closed
        assert await consumers_of_results(own) == 1


async def test_results_that_are_late_or_of_nobody_are_counted_over_all_workers() -> None:
    outcome = Outcome(Status.COMPLETED, b"1", None, None)
    async with open_worker() as lone:
        await lone.start()

        await lone.say(Finished(ONLY, 0, 99, outcome))
        await lone.say(Finished(NodeKey("nobody", "knows"), 1, 1, outcome))

        assert (lone.refused("late"), lone.refused("unknown"), lone.commits_refused) == (1, 1, 0)
