"""RQ's copy is compared with the ledger; what differs twice is mended, what differs once is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest

from coditect import Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import backbone, capability_queues
from coditect.client import Client
from coditect.clock import SystemClock
from coditect.registry.memory import MemoryRegistry
from coditect.run import Run
from dispatcher import reconciling
from dispatcher.graph.memory import MemoryTaskGraph
from dispatcher.graph.port import Difference, Job, JobState
from dispatcher.program import Dispatcher, Options, running_dispatcher
from dispatcher.reconciling import Reconciling
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually


class Lagging(MemoryTaskGraph):
    """Its next look sees nothing of what is there."""

    late = False

    async def difference(self, expected: Sequence[Job]) -> Difference:
        if self.late:
            self.late = False
            return Difference(tuple(expected), ())
        return await super().difference(expected)


class Scene:
    """A dispatcher with RQ in memory, and a workflow that waits for a person."""

    def __init__(self, dispatcher: Dispatcher, database: MemoryDatabase, graph: Lagging, run: Run) -> None:
        self.dispatcher = dispatcher
        self.graph = graph
        self.run = run
        self.reconciling = Reconciling(database, dispatcher.tenure.desks, graph)

    def state(self, node: str) -> JobState | None:
        return self.graph.state(self.run.id, node)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(reconciling, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(reconciling, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(reconciling, "BATCH", 3)
    server, registry, graph = MemoryServer(), MemoryRegistry(), Lagging()
    flow = Workflow("asks")
    gate = flow.approval("Go on?", name="gate")
    for number in range(8):
        flow.task("work", name=f"n{number}", after=[gate])
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(MemoryDatabase())
        broker = await enter(MemoryBroker(server, name="dispatcher"))
        plane = running_dispatcher(
            broker=broker,
            registry=registry,
            clock=SystemClock(),
            database=database,
            graph=graph,
            options=Options(shards=2),
        )
        dispatcher = await enter(plane)
        mine = await enter(MemoryBroker(server, name="client"))
        client = await enter(Client(mine, registry, clock=SystemClock(), name="client-test"))
        await mine.declare(backbone() + capability_queues("work"))
        run = await client.start(flow)
        found = Scene(dispatcher, database, graph, run)
        await eventually(lambda: found.state("n7") is JobState.DEFERRED and found.state("gate") is JobState.SCHEDULED)
        yield found


async def test_what_is_as_it_should_be_is_left_alone(scene: Scene) -> None:
    assert await scene.reconciling.round() == 0


async def test_jobs_that_are_missing_are_mended(scene: Scene) -> None:
    scene.graph.lose(scene.run.id, "n6")
    scene.graph.lose(scene.run.id, "gate")

    assert await scene.reconciling.round() == 2

    await eventually(lambda: scene.state("n6") is JobState.DEFERRED and scene.state("gate") is JobState.SCHEDULED)
    assert await scene.reconciling.round() == 0


async def test_difference_that_does_not_stand_is_no_drift(scene: Scene) -> None:
    scene.graph.late = True

    assert await scene.reconciling.round() == 0
    assert not scene.graph.late
