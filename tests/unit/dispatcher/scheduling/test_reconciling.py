"""RQ's copy is compared with the ledger; what differs twice is mended, what differs once is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack

import pytest

from coditect import Workflow
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.registry.memory import MemoryRegistry
from dispatcher.ledger import unit_of_work
from dispatcher.ledger.commands import Show
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.scheduling import reconciler
from dispatcher.scheduling.reconciler import Reconciler
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.memory import MemoryDatabase
from dispatcher.taskgraph import projector
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import GraphDifference, Job, JobState, Key, TaskGraphUnavailable, Unfinished
from tests.support import eventually

SHARDS = 2


class Lagging(MemoryTaskGraph):
    """Its next look sees nothing of what is there."""

    late = False

    def __init__(self) -> None:
        super().__init__()
        self.compared: list[int] = []
        """How many jobs each comparison was of."""
        self.passes = 0

    async def difference(self, expected: Sequence[Job], queued: Collection[Key] = ()) -> GraphDifference:
        self.compared.append(len(expected))
        if self.late:
            self.late = False
            return GraphDifference(tuple(expected), ())
        return await super().difference(expected, queued)

    async def unfinished(self, shard: int) -> Unfinished:
        self.passes += 1
        return await super().unfinished(shard)


class Scene:
    """A dispatcher with RQ in memory, and a workflow that waits for a person."""

    def __init__(
        self, dispatcher: Dispatcher, database: MemoryDatabase, graph: Lagging, run: Run, client: Client
    ) -> None:
        self.dispatcher = dispatcher
        self.client = client
        self.graph = graph
        self.run = run
        self.reconciling = Reconciler(database, dispatcher.ownership.workers, graph)

    @property
    def worker(self) -> ShardWorker:
        """The workflow's."""
        return self.dispatcher.ownership.workers[shard_of(self.run.id, SHARDS)]

    def state(self, node: str) -> JobState | None:
        return self.graph.state(self.run.id, node)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(reconciler, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(reconciler, "SHARE", 1.0)
    monkeypatch.setattr(reconciler, "BATCH", 3)
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
            options=DispatcherOptions(shards=SHARDS),
        )
        dispatcher = await enter(plane)
        mine = await enter(MemoryBroker(server, name="client"))
        client = await enter(Client(mine, registry, clock=SystemClock(), name="client-test"))
        await mine.declare(base_topology() + capability_queues("work"))
        run = await client.start(flow)
        found = Scene(dispatcher, database, graph, run, client)
        await eventually(lambda: found.state("n7") is JobState.DEFERRED and found.state("gate") is JobState.SCHEDULED)
        yield found


async def test_what_is_as_it_should_be_is_left_alone(scene: Scene) -> None:
    assert await scene.reconciling.round() == 0


async def test_small_workflows_are_compared_together_and_the_queues_are_gone_over_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "BATCH", 100)
    flow = Workflow("small")
    flow.approval("Go on?", name="gate")
    runs = [await scene.client.start(flow) for _ in range(40)]
    await eventually(lambda: all(scene.graph.state(run.id, "gate") is JobState.SCHEDULED for run in runs))

    async def known() -> bool:
        return len(await scene.graph.known(range(SHARDS))) == SHARDS

    await eventually(known)  # the first look shows all of them again, which compares them, too
    await scene.reconciling.round()
    scene.graph.compared.clear()
    scene.graph.passes = 0

    assert await scene.reconciling.round() == 0

    own = len(scene.dispatcher.ownership.workers)
    assert sum(scene.graph.compared) == 40 + 9
    assert len(scene.graph.compared) <= own
    assert scene.graph.passes <= own


async def test_comparing_takes_its_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    now = asyncio.get_running_loop().time()

    await reconciler._rest(now - 0.1)
    await reconciler._rest(now - 100.0)

    assert 0.1 / (0.1 + slept[0]) <= reconciler.SHARE + 0.001
    assert slept[1] == reconciler.LONGEST_PAUSE_SECONDS


async def test_jobs_that_are_missing_are_mended(scene: Scene) -> None:
    scene.graph.lose(scene.run.id, "n6")
    scene.graph.lose(scene.run.id, "gate")

    assert await scene.reconciling.round() == 2

    await eventually(lambda: scene.state("n6") is JobState.DEFERRED and scene.state("gate") is JobState.SCHEDULED)
    assert await scene.reconciling.round() == 0


async def test_what_takes_several_batches_is_compared_and_mended_as_a_whole(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_of_work, "MOST_STEPS", -1)  # each node is a batch's work
    for node in ("n0", "n6", "n7"):
        scene.graph.lose(scene.run.id, node)

    assert await scene.reconciling.round() == 3

    await eventually(lambda: {scene.state(node) for node in ("n0", "n6", "n7")} == {JobState.DEFERRED})
    assert await scene.reconciling.round() == 0


async def test_difference_that_does_not_stand_is_no_drift(scene: Scene) -> None:
    scene.graph.late = True

    assert await scene.reconciling.round() == 0
    assert not scene.graph.late


async def test_nobody_waits_for_a_shard_that_went_while_redis_was_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, projector = scene.worker, scene.worker.projector
    assert projector is not None
    waits, told = asyncio.Event(), projector.told

    async def wait() -> None:
        waits.set()
        await told()

    async def nothing(_: int) -> Unfinished:
        return Unfinished((), ())

    monkeypatch.setattr(projector, "told", wait)
    monkeypatch.setattr(scene.graph, "unfinished", nothing)  # the last that was answered
    scene.graph.failing = True
    worker.put(Show(scene.run.id))
    await eventually(lambda: projector.waiting)
    comparing = asyncio.ensure_future(scene.reconciling.round())
    await waits.wait()

    await worker.close()

    with pytest.raises(TaskGraphUnavailable):
        async with asyncio.timeout(5):
            await comparing


async def test_rq_is_told_of_the_last_commits_before_a_shard_goes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "GATHER_SECONDS", 1_000.0)
    await scene.run.cancel()

    await scene.worker.close()

    assert scene.state("gate") is scene.state("n7") is JobState.CANCELED
