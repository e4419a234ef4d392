"""A rebuild on demand tells what it made again; of a restored store what an abandoned run says is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from itertools import count
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chaos.simulated_store import Disk, SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect import Agent, Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.workflow_run import WorkflowRun
from coditect.model.retry import RETRY_DELAYS_MS
from coditect.operations.rebuild import KINDS, rebuild
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.control import Started
from coditect.workflow.states import WorkflowState
from dispatcher.ledger import outbox, versions
from dispatcher.ledger.commands import Began
from dispatcher.ledger.keyspace import MARKERS, STORE
from dispatcher.ledger.ownership import incarnation
from dispatcher.ledger.ownership.incarnation import HOUR_MS, HOURS_FROM_MS, NUMBERS
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import republish
from dispatcher.liveness.broker_epoch import BrokerEpoch
from dispatcher.program import Dispatcher
from dispatcher.recovery import rebuild as rebuilding
from dispatcher.scheduling import reconciler
from dispatcher.shards import in_flight
from dispatcher.store.errors import StoreMisconfigured
from dispatcher.taskgraph.port import Job, JobState
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, wide
from tests.unit.dispatcher.lone_worker import ONLY, LoneWorker
from tests.unit.dispatcher.planes import dispatcher_of, lone_dispatcher, plane
from tests.unit.layers.scene import Store

SHARDS = 3
WIDTH = 8


class Scene:
    """A dispatcher of several shards with RQ in memory, and workflows whose nodes no agent takes."""

    def __init__(self, dispatcher: Dispatcher, broker: MemoryBroker, graph: MemoryTaskGraph) -> None:
        self.dispatcher = dispatcher
        self.broker = broker
        self.graph = graph
        self.runs: list[WorkflowRun] = []

    async def rebuild(self) -> dict[str, int]:
        rebuilt = await rebuild(self.broker)
        assert rebuilt.compared
        return rebuilt.counts

    async def is_remembered(self) -> bool:
        return len(await self.graph.known(range(SHARDS))) == SHARDS

    async def shown(self) -> None:
        def are_queued() -> bool:
            states = [self.graph.state(run.id, f"n{number}") for run in self.runs for number in range(WIDTH)]
            return states == [JobState.STARTED] * len(states)

        await eventually(are_queued)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(reconciler, "RECOMPARE_SECONDS", 0.01)
    monkeypatch.setattr(reconciler, "BATCH", 3)
    monkeypatch.setattr(in_flight, "UNTOLD_SECONDS", 0.0)
    monkeypatch.setattr(republish, "MAX_REPUBLISHED", 3)
    graph = MemoryTaskGraph()
    async with plane() as made:
        found = Scene(await made.dispatcher(graph=graph, shards=SHARDS), await made.broker("doctor"), graph)
        client = await made.client()
        await found.broker.declare(base_topology() + capability_queues("work"))
        await eventually(found.is_remembered)  # or the shards that RQ did not have yet are shown again during a test
        flow = wide(WIDTH)
        found.runs = [await client.start(flow) for _ in range(4)]
        await found.shown()
        yield found


async def test_only_what_is_published_anew_is_told_where_nothing_is_missing(scene: Scene) -> None:
    nothing = dict.fromkeys(KINDS, 0)

    assert await scene.rebuild() == nothing | {"published": 4 * WIDTH}
    assert await scene.rebuild() == nothing | {"published": 4 * WIDTH}


async def test_what_was_missing_is_told_once(scene: Scene) -> None:
    await scene.broker.delete_queue(routing.retry_queue(RETRY_DELAYS_MS[0]))
    await scene.broker.delete_queue(routing.DEAD_NOTICES)
    for run, node in ((scene.runs[0], "n0"), (scene.runs[0], "n7"), (scene.runs[3], "n4")):
        scene.graph.lose(run.id, node)

    counts = await scene.rebuild()

    assert counts == {"queues": 2, "published": 4 * WIDTH, "working": 0, "workflows": 2, "jobs": 3}
    assert await scene.broker.stats(routing.DEAD_NOTICES) is not None
    await scene.shown()
    assert (await scene.rebuild())["jobs"] == 0


async def test_rebuild_does_not_wait_for_redis(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rebuilding, "COMPARE_SECONDS", 0.0)

    rebuilt = await rebuild(scene.broker)

    assert (rebuilt.counts["jobs"], rebuilt.compared) == (0, False)
    assert "RQ could not be compared; it is shown everything" in caplog.messages


async def test_jobs_found_before_redis_was_gone_are_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "RECOMPARE_SECONDS", 0.0)
    for run in scene.runs:
        for number in range(WIDTH):
            scene.graph.lose(run.id, f"n{number}")
    difference, looks = scene.graph.difference, count()

    async def goes(jobs: Sequence[Job], _: object = ()) -> Sequence[Job]:
        scene.graph.failing = next(looks) == 2  # after both looks at a first page
        return await difference(jobs)

    monkeypatch.setattr(scene.graph, "difference", goes)

    rebuilt = await rebuild(scene.broker)

    assert not rebuilt.compared
    assert rebuilt.counts["jobs"] >= 3
    assert rebuilt.counts["workflows"] >= 1


class Unsure:
    """Finds no marker, and can make none."""

    def __init__(self, there: bool) -> None:
        self.there = there

    async def of_broker(self, known: str) -> str:
        return known

    async def is_there(self, marker: str) -> bool:
        return self.there


@pytest.mark.parametrize("silent_seconds", [0, 100])
@pytest.mark.parametrize("there", [True, False])
async def test_begun_task_is_published_anew_if_the_broker_is_new(
    lone: LoneWorker, there: bool, silent_seconds: int
) -> None:
    """A silence may be this process's: it stood still. The orphan detector knows of that, not the rebuild."""
    await lone.start()
    await eventually(lambda: lone.published() == 1)
    flight = lone.flight
    await lone.say(Began(Started(*ONLY, flight.fence, flight.publication, AGENT, 1, 0)))
    before = lone.flight.publication
    lone.flight.heard -= silent_seconds

    told = await rebuilding.rebuild(lone.ports, cast(BrokerEpoch, Unsure(there)), lone.worker, "a person")

    assert (told["published"], told["working"]) == (0, 0 if there else 1)
    assert (lone.flight.publication == before) is there


async def test_full_batches_tell_all_that_they_publish_anew(lone: LoneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = wide(WIDTH)
    await lone.start(flow)
    await eventually(lambda: lone.published() == WIDTH)
    looks = count()
    monkeypatch.setattr(UnitOfWork, "is_full", property(lambda _: next(looks) < 10))

    told = await rebuilding.rebuild(lone.ports, cast(BrokerEpoch, Unsure(there=False)), lone.worker, "a person")

    assert told["published"] == WIDTH


SLOW_SECONDS = 10.0


@asynccontextmanager
async def dispatcher(fleet: TestFleet, disk: Disk, graph: MemoryTaskGraph, name: str) -> AsyncIterator[Dispatcher]:
    async with (
        SimulatedDatabase(disk) as database,
        MemoryBroker(fleet.server, name=name) as broker,
        dispatcher_of(fleet, broker, database, owner=name, graph=graph, evict=fleet.server, shards=1) as running,
    ):
        yield running


@pytest.mark.parametrize("lives_abandoned", [0, 1])
async def test_result_of_an_abandoned_run_is_refused_after_the_store_was_copied_back(lives_abandoned: int) -> None:
    worker, executions = Agent("worker", slots=4), 0

    @worker.capability("first")
    async def first(_: None) -> None:
        await asyncio.sleep(1)

    @worker.capability("slow")
    async def slow(_: None) -> int:
        nonlocal executions
        executions += 1
        number = executions
        await asyncio.sleep(SLOW_SECONDS)
        return number

    flow = Workflow("two")
    flow.task("slow", name="slow", after=[flow.task("first", name="first")])
    async with TestFleet([worker]) as fleet:
        fleet.kill("dispatcher")
        disk, graph = Disk(), MemoryTaskGraph()
        async with dispatcher(fleet, disk, graph, "ada"):
            run = await fleet.start(flow)
            await fleet.advance(0.5)
            if not lives_abandoned:
                copy = deepcopy(disk)
                await fleet.advance(1.5)
        if lives_abandoned:
            copy = deepcopy(disk)
            async with dispatcher(fleet, disk, graph, "bob"):
                await fleet.advance(1.5)
        assert executions == 1, "the abandoned run is under way"

        async with dispatcher(fleet, copy, graph, "cid") as restored:
            assert await run.wait(timeout="5m") is WorkflowState.COMPLETED

            assert (executions, await run.result(int, node="slow")) == (2, 2)
            assert restored.ownership.figures()["late"] >= 1


@pytest.mark.parametrize("row", [("store", 3), ("store", 3, incarnation.FORM + 1)], ids=["earlier", "later"])
async def test_store_of_another_form_is_refused_and_left_as_it_is(row: tuple[str | int, ...]) -> None:
    async with SimulatedDatabase() as database, MemoryBroker(MemoryServer(), name="me") as broker:
        await database.run(lambda tr: tr.set(STORE.pack(), versions.STORE.pack(row)))
        before = await database.read(lambda tr: tr.get_range(b"", b"\xff"))

        with pytest.raises(StoreMisconfigured, match="Another version made this store") as refused:
            async with lone_dispatcher(broker, database):
                pass

        assert "start with a new store" in str(refused.value.facts["fix"])
        assert await database.read(lambda tr: tr.get_range(b"", b"\xff")) == before


@pytest.mark.parametrize(("known", "forgotten"), [(0, False), (1, True)])
def test_shards_of_a_store_that_redis_knows_to_be_older_forget_their_brokers(known: int, forgotten: bool) -> None:
    store = Store()
    store.run(lambda tr: incarnation.begin(tr, "store", known=0))
    store.run(lambda tr: tr.set(MARKERS.pack((0,)), versions.MARKER.pack(("marker", "occasion", 3))))
    begun = store.run(lambda tr: incarnation.begin(tr, "other", known=known))

    assert (begun.store, begun.number, begun.is_restored) == ("store", known + 1, forgotten)
    assert (store.run(lambda tr: tr.get_range(*MARKERS.range())) == []) is forgotten
    store.run(lambda tr: incarnation.restore(tr, HOURS_FROM_MS + 7_000 * HOUR_MS))
    again = store.run(lambda tr: incarnation.begin(tr, "other", known=0))
    assert again.number == 7_001, "above what any life since 2026 began, though Redis was wiped"


def test_dispatchers_that_start_at_once_begin_no_incarnation_together() -> None:
    store = Store()
    one, other = store.begin(), store.begin()
    for opened, name in ((one, "a"), (other, "b")):
        incarnation.begin(opened.tr, name, known=0)

    assert [one.commits(), other.commits()] == [True, False]


async def test_numbers_and_fences_are_above_the_floor_of_the_incarnation() -> None:
    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database, floor=3 * NUMBERS)
        publication = await ledger.start_one()
    assert publication.task.owner is not None
    assert (publication.number, publication.task.owner.fence) == (3 * NUMBERS + 1, 3 * NUMBERS + 1)


class Restored(RuleBasedStateMachine):
    """Numbers are given, the store is copied and copied back: no number is ever given twice, in no run."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.copies: list[Disk] = []
        self.redis = 0
        self.floor = 0
        self.given: list[int] = [0]
        self.start()

    @rule()
    def start(self) -> None:
        begun = self.store.run(lambda tr: incarnation.begin(tr, "store", known=self.redis))
        self.redis, self.floor = max(self.redis, begun.number), begun.floor

    @rule(many=st.integers(1, 5))
    def give(self, many: int) -> None:
        for _ in range(many):
            number = max(self.store.run(lambda tr: outbox.numbers(tr, 0).last), self.floor) + 1
            self.store.run(lambda tr, number=number: outbox.record(tr, 0, outbox.Numbers(number)))  # type: ignore[misc]
            self.given.append(number)

    @rule()
    def copy(self) -> None:
        self.copies.append(deepcopy(self.store.disk))

    @rule(number=st.integers(0, 5))
    def copy_back_and_start(self, number: int) -> None:
        if self.copies:
            self.store.disk = deepcopy(self.copies[number % len(self.copies)])
            self.start()

    @invariant()
    def numbers_grow(self) -> None:
        assert self.given == sorted(set(self.given))


TestNumbersOfRestoredStores = Restored.TestCase
TestNumbersOfRestoredStores.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
