"""A store that was restored from a copy of its past: what an abandoned run says is refused, and work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coditect import Agent, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState
from dispatcher.ledger import outbox, versions
from dispatcher.ledger.keyspace import MARKERS
from dispatcher.ledger.ownership import incarnation
from dispatcher.ledger.ownership.incarnation import HOUR_MS, HOURS_FROM_MS, NUMBERS
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.store.memory import Disk, MemoryDatabase
from dispatcher.taskgraph.memory import MemoryTaskGraph
from tests.unit.dispatcher.ledger.test_batch import one_node
from tests.unit.dispatcher.lone_ledger import Ledger
from tests.unit.layers.scene import Store

SLOW_SECONDS = 10.0


@asynccontextmanager
async def dispatcher(fleet: TestFleet, disk: Disk, graph: MemoryTaskGraph, name: str) -> AsyncIterator[Dispatcher]:
    async with (
        MemoryDatabase(disk) as database,
        MemoryBroker(fleet.server, name=name) as broker,
        running_dispatcher(
            broker=broker,
            registry=fleet.registry,
            clock=fleet._clock(name),
            database=database,
            graph=graph,
            evict=fleet.server,
            options=DispatcherOptions(shards=1, owner=name),
        ) as running,
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


@pytest.mark.parametrize(("known", "forgotten"), [(0, False), (1, True)])
def test_shards_of_a_store_that_redis_knows_to_be_older_forget_their_brokers(known: int, forgotten: bool) -> None:
    store = Store()
    store.run(lambda tr: incarnation.begin(tr, "store", known=0))
    store.run(lambda tr: tr.set(MARKERS.pack((0,)), versions.MARKER.pack(("marker", "occasion", 3))))

    begun = store.run(lambda tr: incarnation.begin(tr, "other", known=known))

    assert (begun.store, begun.number, begun.is_restored) == ("store", known + 1, forgotten)
    assert (store.run(lambda tr: tr.get_range(*MARKERS.range())) == []) is forgotten


def test_incarnation_of_a_copy_is_above_what_any_life_since_2026_began_where_redis_was_wiped() -> None:
    store = Store()
    store.run(lambda tr: incarnation.begin(tr, "store", known=0))

    store.run(lambda tr: incarnation.restore(tr, HOURS_FROM_MS + 7_000 * HOUR_MS))

    assert store.run(lambda tr: incarnation.begin(tr, "other", known=0)).number == 7_001


def test_dispatchers_that_start_at_once_begin_no_incarnation_together() -> None:
    store = Store()
    one, other = store.begin(), store.begin()
    for opened, name in ((one, "a"), (other, "b")):
        incarnation.begin(opened.tr, name, known=0)

    assert [one.commits(), other.commits()] == [True, False]


async def test_numbers_and_fences_are_above_the_floor_of_the_incarnation() -> None:
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database, floor=3 * NUMBERS)
        await ledger.start(one_node())

    (publication,) = ledger.published
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
            number = max(self.store.run(lambda tr: outbox.last_number(tr, 0)), self.floor) + 1
            self.store.run(lambda tr, number=number: outbox.count(tr, 0, number))  # type: ignore[misc]
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
