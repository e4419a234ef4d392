"""Shards that are owned, lost, handed over and closed: late commits are refused, and nothing is lost or run twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn

import pytest

from chaos.simulated_store import SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect import Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.broker import MemoryConsumer
from coditect.broker.port import Consumer, Delivery
from coditect.broker.topology import Topology, capability_queues, shard_queues
from coditect.errors import BrokerUnavailable, CoditectError, NotFound, TopologyMismatch, Unroutable
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.model.task import Task
from coditect.registry.memory import MemoryRegistry
from coditect.wire import routing
from coditect.wire.control import Started, Verb, request, started_message
from dispatcher.ledger.commands import Claimed, Finished
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.keyspace import LEASES, MARKERS
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.retention import SWEEP_LEASE
from dispatcher.shards import worker as worker_module
from dispatcher.shards.ownership import ShardOwnership
from dispatcher.shards.results import ResultsConsumer
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.transaction import Transaction
from dispatcher.taskgraph.port import Change, Job, Proposal, ToolRequest
from tests.support import eventually, patient
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_ledger import Ledger, completed
from tests.unit.dispatcher.lone_worker import CAPABILITY, ONLY, LoneWorker, open_worker, start_of, unconfirm
from tests.unit.dispatcher.planes import Plane, lone_dispatcher, plane


def take_over(tr: Transaction, owner: str) -> None:
    """Another takes the only shard, as if its owner had stood still for long."""
    leases.leave(tr, owner)
    leases.renew(tr, "other", 1)
    assert leases.acquire(tr, shards.lease_name(0), "other") is not None


async def is_settled(database: SimulatedDatabase) -> bool:
    """Tell whether the shard and the retention have written what they write at their start."""
    keys = [MARKERS.pack((0,)), LEASES.pack(SWEEP_LEASE)]
    return None not in await database.read(lambda tr: tr.get_many(keys))


async def test_late_commit_is_refused_counted_and_said(
    made: Plane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 3_600_000)
    flow = Workflow("asks")
    flow.approval("Go on?", name="gate")
    ownership, database = (await made.dispatcher(shards=1)).ownership, made.database
    run = await (await made.client()).start(flow)
    mine = await made.broker("somebody")
    await eventually(lambda: is_settled(database))
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


async def test_late_commit_amid_a_close_is_said(
    lone: LoneWorker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "OUTBOX_IDLE_SECONDS", 3_600.0)  # the closing worker records the confirm
    await lone.start()
    await eventually(lambda: lone.published() == 1)
    await lone.database.run(lambda tr: take_over(tr, "me"))

    await lone.worker.close()

    assert lone.commits_refused == 1
    assert len(await lone.unsent()) == 1, "the new owner decides about it"
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
    kind: type[MemoryBroker] = MemoryBroker, store: SimulatedDatabase | None = None
) -> AsyncIterator[tuple[Any, ShardOwnership]]:
    """Yield a dispatcher's broker and its ownership of the only shard."""
    async with (
        store or SimulatedDatabase() as database,
        kind(MemoryServer(), name="dispatcher") as own,
        lone_dispatcher(own, database) as running,
    ):
        yield own, running.ownership


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), NotFound("gone"), TopologyMismatch("another")])
async def test_shard_that_cannot_listen_is_opened_again(monkeypatch: pytest.MonkeyPatch, error: CoditectError) -> None:
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
    async with SimulatedDatabase() as store, Together(MemoryServer(), name="dispatcher") as broker:
        broker.all_asked = asyncio.Barrier(4)
        for _ in range(2):  # the second finds a store of which Redis may know
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(patient(2)):
                    opening = lone_dispatcher(broker, store, graph=HungGraph(), shards=4)
                    running = await stack.enter_async_context(opening)

                assert len(running.ownership.workers) == 4


class OfOneProcess(SimulatedDatabase):
    """Says that no other process can have it open, as a store in a file does."""

    exclusive = True


async def test_shard_of_a_process_that_died_is_taken_at_once_where_no_other_can_be_alive() -> None:
    store = OfOneProcess()
    async with store:
        await store.run(lambda tr: shards.fix_count(tr, 1))
        assert (await store.run(lambda tr: shards.step(tr, "dead", 1, count=1))).owned

    async with one_shard(store=store) as (_, ownership):
        assert set(ownership.workers) == {0}


async def test_shard_that_another_had_for_a_while_gets_a_new_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 10)

    def come_and_go(tr: Transaction, owner: str) -> None:
        take_over(tr, owner)
        leases.leave(tr, "other")

    async with SimulatedDatabase() as store, one_shard(store=store) as (_, ownership):
        await eventually(lambda: is_settled(store))  # else a commit is refused, and tells of the loss
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


async def test_results_that_are_late_or_of_nobody_are_counted_over_all_workers(lone: LoneWorker) -> None:
    outcome = Outcome(Status.COMPLETED, b"1", None, None)
    await lone.start()

    await lone.say(Finished(ONLY, 0, 99, outcome))
    await lone.say(Finished(NodeKey("nobody", "knows"), 1, 1, outcome))

    assert (lone.refused("late"), lone.refused("unknown"), lone.commits_refused) == (1, 1, 0)


MANY_SHARDS = 16


class Silent(MemoryRegistry):
    """Does not say what the agents offer: whoever would answer for a task that no agent ran waits."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def capabilities(self) -> frozenset[str]:
        self.asked.set()
        await asyncio.Event().wait()
        return frozenset()


class Frozen(MemoryBroker):
    """While it is not `thawed` it neither declares nor ends a consumer."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, name="own")
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.declaring = 0

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        self.declaring += not self.thawed.is_set()
        await self.thawed.wait()
        await super().declare(topology, lazily=lazily)


@in_virtual_time
async def test_shards_are_free_within_a_second_of_a_silent_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cancel = asyncio.get_running_loop().time, MemoryConsumer.cancel
    async with plane() as made, AsyncExitStack() as leaving, AsyncExitStack() as ending:
        own = await made.stack.enter_async_context(Frozen(made.server))
        both = await made.dispatcher(own, stack=ending), await made.dispatcher(stack=leaving)
        await eventually(lambda: {len(one.ownership.workers) for one in both} == {MANY_SHARDS // 2})

        async def cancel_when_thawed(consumer: MemoryConsumer) -> None:
            await own.thawed.wait()
            await cancel(consumer)

        await leaving.aclose()
        own.thawed.clear()
        monkeypatch.setattr(MemoryConsumer, "cancel", cancel_when_thawed)
        await eventually(lambda: own.declaring)  # a step takes what the other one left
        began, ended = now(), asyncio.create_task(ending.aclose())
        while await made.database.read(leases.beats):
            await asyncio.sleep(0.01)
        took = now() - began
        own.thawed.set()
        await ended

    assert took < 1


@in_virtual_time
async def test_shards_are_free_within_a_second_while_the_broker_is_blocked_and_a_notice_waits() -> None:
    registry, now = Silent(), asyncio.get_running_loop().time
    async with plane(registry=registry) as made, AsyncExitStack() as ending:
        own, other = await made.broker("own"), await made.broker("other")
        workers = (await made.dispatcher(own, stack=ending, shards=MANY_SHARDS)).ownership.workers
        await other.declare(capability_queues(CAPABILITY))
        await other.publish(Message(b"{}", reply_to="my.answers"), exchange=routing.TASKS, routing_key="no.such.p1")
        await registry.asked.wait()
        made.server.block()
        for workflow in (f"w{number}" for number in range(100)):
            await workers[shard_of(workflow, MANY_SHARDS)].ask(start_of(workflow))

        began, end = now(), asyncio.create_task(ending.aclose())
        while await made.database.read(leases.beats):
            await asyncio.sleep(0.01)
        took = now() - began
        made.server.unblock()
        await end

    assert took < 1
    assert now() - began > 1, "the notice was waited for"


QUEUE = routing.results_queue(0)


@pytest.fixture
async def loaded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoneWorker]:
    """Its one node is published, and the ledger does not know that yet."""
    async with open_worker() as opened:
        monkeypatch.setattr(worker_module, "OUTBOX_IDLE_SECONDS", 3_600.0)
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
async def test_starts_are_acked_when_they_are_recorded(loaded: LoneWorker, nodes: Sequence[str]) -> None:
    delivery = await starts(loaded, nodes)

    ResultsConsumer(loaded.worker).take(delivery)

    await eventually(lambda: loaded.flight.agent == ("worker-1" if nodes else ""))
    assert await left(loaded) == 0


@pytest.mark.parametrize("closed", ["before", "after"])
async def test_starts_that_are_not_recorded_go_back(loaded: LoneWorker, closed: str) -> None:
    delivery = await starts(loaded, ["only"])
    if closed == "before":
        await loaded.worker.close()

    ResultsConsumer(loaded.worker).take(delivery)
    await loaded.worker.close()

    assert await left(loaded) == 1


@pytest.mark.parametrize("unroutable", [False, True])
async def test_what_is_to_be_published_anew_stays_in_the_outbox_until_it_is(
    loaded: LoneWorker, unroutable: bool
) -> None:
    before, number = await loaded.unsent(), loaded.flight.publication
    if unroutable:
        task = Task(CAPABILITY, Priority.P1, b"null")
        loaded.worker._confirms.add([Publication(ONLY, number, task)])
        loaded.worker._published(Publication(ONLY, number, task), Unroutable("No queue"))
        await loaded.worker.close()
    else:
        async with successor_of(loaded):
            pass

    assert await loaded.unsent() == before != {}


async def test_what_the_broker_confirms_until_the_worker_is_closed_is_recorded(loaded: LoneWorker) -> None:
    before = await loaded.unsent()
    loaded.server.block()
    await loaded.say(start_of("later"))
    closing = asyncio.ensure_future(loaded.worker.close())
    await eventually(lambda: loaded.worker.closed)
    loaded.server.unblock()
    await closing

    assert (len(before), await loaded.unsent()) == (1, {})
    assert loaded.published() == 2, "the next owner publishes none of them"


ROOM = 64
"""The tasks of a capability without slots that may be under way."""


@asynccontextmanager
async def successor_of(lone: LoneWorker) -> AsyncIterator[ShardWorker]:
    successor = ShardWorker(lone.worker.lease, lone.ports, on_lost=lambda _: None, nudge=lambda: None)
    await successor.open()
    yield successor
    await successor.close()


async def test_next_owner_continues_with_what_was_left_over(lone: LoneWorker) -> None:
    flow = Workflow("map")
    flow.map(CAPABILITY, [1, 2], name="each")
    former = Ledger(lone.database, lone.worker.lease, Policy(lone.worker.shard), goes_on=False)
    await former.start(flow.definition())
    assert former.unfinished, "its elements are not made yet"

    async with successor_of(lone):
        await eventually(lambda: lone.published() == 2)


async def test_next_owner_publishes_what_waited_for_room(lone: LoneWorker) -> None:
    lone.capacity.keep(CAPABILITY, ROOM)
    await lone.start()
    lone.capacity.free(CAPABILITY, ROOM)

    async with successor_of(lone) as successor:
        successor.fill(CAPABILITY, 1)
        await eventually(lambda: lone.published() == 1)


async def test_next_owner_publishes_what_may_be_unsent(lone: LoneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, many = Workflow("many"), 101
    for number in range(many):
        flow.task(CAPABILITY, name=f"n{number}")
    monkeypatch.setattr(worker_module, "OUTBOX_IDLE_SECONDS", 3_600.0)  # their rows are not cleared
    lone.capacity.set_slots({CAPABILITY: many})
    await lone.start(flow)
    lone.worker.fill(CAPABILITY, many - ROOM)
    await eventually(lambda: lone.published() == many)

    async with successor_of(lone):
        await eventually(lambda: lone.published() == 2 * many)


@pytest.mark.parametrize("ended", [False, True])
async def test_next_owner_publishes_no_task_again_that_an_agent_has(lone: LoneWorker, ended: bool) -> None:
    await lone.start()
    number = lone.flight.publication

    await eventually(lone.is_recorded)
    claim = await lone.say(Claimed(ONLY, number, "worker-1"))
    if ended:
        await lone.say(Finished(ONLY, claim.fence, number, completed()))
    await unconfirm(lone)

    async with successor_of(lone):
        pass
    assert lone.published() == 1
