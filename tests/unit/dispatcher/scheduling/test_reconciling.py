"""RQ's copy is compared with the ledger, and put right when it was told too late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence

import pytest

from chaos.simulated_store import SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect import Agent, From, Workflow
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.model.result import Outcome
from coditect.model.retry import Retry
from coditect.wire.control import Verb
from coditect.workflow.states import TaskState
from dispatcher.ledger import unit_of_work
from dispatcher.ledger.commands import Proposed, Show
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.program import Dispatcher
from dispatcher.scheduling import reconciler
from dispatcher.scheduling.reconciler import Reconciler
from dispatcher.shards.worker import ShardWorker
from dispatcher.taskgraph import projector
from dispatcher.taskgraph.port import (
    MOST_RESULT_BYTES,
    Job,
    JobState,
    Key,
    TaskGraphUnavailable,
    Unfinished,
    job_state,
)
from dispatcher.taskgraph.projector import Projector
from tests.contract.graph.scene import counted
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, tasks, wide
from tests.unit.dispatcher.planes import MortalFleet, plane

SHARDS = 2


class Lagging(MemoryTaskGraph):
    """Its next look sees nothing of what is there."""

    late = False

    def __init__(self) -> None:
        super().__init__()
        self.compared: list[int] = []
        """How many jobs each comparison was of."""
        self.passes = 0

    async def difference(self, expected: Sequence[Job], queued: Collection[Key] = ()) -> Sequence[Job]:
        self.compared.append(len(expected))
        if self.late:
            self.late = False
            return expected
        return await super().difference(expected, queued)

    async def unfinished(self, shard: int) -> Unfinished:
        self.passes += 1
        return await super().unfinished(shard)


class Scene:
    """A dispatcher with RQ in memory, and a workflow that waits for a person."""

    def __init__(
        self, dispatcher: Dispatcher, database: SimulatedDatabase, graph: Lagging, run: WorkflowRun, client: Client
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
    monkeypatch.setattr(reconciler, "RECOMPARE_SECONDS", 0.01)
    monkeypatch.setattr(reconciler, "SHARE", 1.0)
    monkeypatch.setattr(reconciler, "BATCH", 3)
    graph = Lagging()
    flow = Workflow("asks")
    gate = flow.approval("Go on?", name="gate")
    for number in range(8):
        flow.task("work", name=f"n{number}", after=[gate])
    async with plane() as made:
        dispatcher = await made.dispatcher(graph=graph, shards=SHARDS)
        client = await made.client()
        await (await made.broker("agent")).declare(base_topology() + capability_queues("work"))
        run = await client.start(flow)
        found = Scene(dispatcher, made.database, graph, run, client)
        await eventually(lambda: found.state("n7") is JobState.DEFERRED and found.state("gate") is JobState.SCHEDULED)
        yield found


async def test_small_workflows_are_compared_together(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
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

    await reconciler._pause_after(now - 0.1, reconciler.SHARE)
    await reconciler._pause_after(now - 100.0, reconciler.SHARE)

    assert 0.1 / (0.1 + slept[0]) <= reconciler.SHARE + 0.001
    assert slept[1] == reconciler.LONGEST_COMPARE_PAUSE_SECONDS


@pytest.mark.parametrize("batches", [False, True], ids=["at once", "in several batches"])
async def test_jobs_that_are_missing_are_mended(scene: Scene, monkeypatch: pytest.MonkeyPatch, batches: bool) -> None:
    assert await scene.reconciling.round() == 0
    if batches:
        monkeypatch.setattr(unit_of_work, "FULL_STEPS", -1)  # each node is a batch's work
    missing = {"n0": JobState.DEFERRED, "n6": JobState.DEFERRED, "gate": JobState.SCHEDULED}
    for node in missing:
        scene.graph.lose(scene.run.id, node)
    assert await scene.reconciling.round() == 3
    await eventually(lambda: {node: scene.state(node) for node in missing} == missing)
    assert await scene.reconciling.round() == 0


async def test_difference_that_does_not_stand_is_no_drift(scene: Scene) -> None:
    scene.graph.late = True

    assert await scene.reconciling.round() == 0
    assert not scene.graph.late


async def test_nobody_waits_for_a_shard_that_went_amid_this(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, projector = scene.worker, scene.worker.projector
    assert projector is not None
    waits, flushed = asyncio.Event(), projector.flushed

    async def wait() -> None:
        waits.set()
        await flushed()

    async def nothing(_: int) -> Unfinished:
        return Unfinished((), ())

    monkeypatch.setattr(projector, "flushed", wait)
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


async def test_rq_hears_of_the_last_commits_of_a_shard(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "JOB_GATHER_SECONDS", 1_000.0)
    await scene.run.cancel()

    await scene.worker.close()

    assert scene.state("gate") is scene.state("n7") is JobState.CANCELED


class Fleet(MortalFleet):
    """Two dispatchers with one ledger and one RQ."""

    names = ("first", "second")
    shards = SHARDS

    async def in_rq(self) -> Counter[JobState]:
        return await counted(self.graph, range(SHARDS))


async def in_ledger(run: WorkflowRun) -> Counter[JobState]:
    counts: Counter[JobState] = Counter()
    for state, number in (await run.overview()).counts.items():
        counts[job_state(state)] += number
    return counts


@pytest.mark.parametrize("point", ["tell.before", "commit.after"])
@pytest.mark.parametrize("ends", ["completed", "failed"])
async def test_jobs_of_a_workflow_that_ended_with_its_dispatcher_are_put_right(point: str, ends: str) -> None:
    agent, may_end = Agent("worker", slots=4), asyncio.Event()

    @agent.capability("work", retry=Retry(max_attempts=1))
    async def work(node: str) -> str:
        if node == "last":
            await may_end.wait()
            assert ends == "completed", "it is to fail"
        return node

    flow = Workflow("gap")
    before = [flow.task("work", f"n{number}", name=f"n{number}") for number in range(3)]
    last = flow.task("work", "last", after=before, name="last")
    if ends == "failed":
        flow.task("work", after=[last], name="behind")
    async with Fleet([agent]) as fleet:
        run = await fleet.start(flow)
        await fleet.advance("5s")
        assert await fleet.in_rq() == await in_ledger(run)

        fleet.die_at = point
        may_end.set()

        assert await run.wait() == ends
        await fleet.advance("1s")
        assert not fleet.die_at
        assert await fleet.in_rq() != await in_ledger(run)
        await fleet.advance("60s")
        assert await fleet.in_rq() == await in_ledger(run)


LONGEST = "x" * (MOST_RESULT_BYTES - 2)


async def shown(ledger: Ledger) -> MemoryTaskGraph:
    """What RQ has after everything that happened."""
    graph = MemoryTaskGraph()
    of_shard = Projector(graph, ledger.policy.shard, moved=lambda: None)
    for effects in ledger.seen:
        of_shard.follow(effects)
    telling = asyncio.create_task(of_shard.run())
    await of_shard.flushed()
    telling.cancel()
    return graph


async def run(ledger: Ledger, *ends: Outcome) -> MemoryTaskGraph:
    """A workflow whose nodes n0, n1... end like this."""
    await ledger.start(wide(len(ends)))
    await ledger.play(lambda publication: ends[int(publication.node_key.node[1:])])
    return await shown(ledger)


async def test_a_value_is_shown_unless_it_is_long_and_an_error_in_a_line(ledger: Ledger) -> None:
    graph = await run(ledger, completed({"lines": 42}), completed(LONGEST), completed(LONGEST + "x"), failed())

    assert [graph.result("w", f"n{number}") for number in range(4)] == [
        [b'{"lines":42}'], [f'"{LONGEST}"'.encode()], [b"null"], [b"handler_error: ValueError: no"],
    ]  # fmt: skip
    assert [graph.state("w", node) for node in ("n2", "n3")] == [JobState.FINISHED, JobState.FAILED]


@pytest.mark.parametrize("chunk", [2, 1], ids=["whole", "in pieces"])
async def test_a_workflow_that_came_whole_is_shown_with_its_acceptance(ledger: Ledger, chunk: int) -> None:
    await ledger.start(tasks(first="", second="first"), chunk=chunk)

    accepted = ledger.seen[-1]
    whole = {NodeKey("w", "first"): (TaskState.PUBLISHED, ()), NodeKey("w", "second"): (TaskState.BLOCKED, ("first",))}
    assert {one.node_key: (one.state, tuple(one.after)) for one in accepted.snapshots} == (whole if chunk == 2 else {})
    assert accepted.unshown == ([] if chunk == 2 else ["w"])


async def test_values_that_no_agent_told_are_shown_too(ledger: Ledger) -> None:
    flow = Workflow("own")
    each = flow.map("work", "input", From("item"), limit=5, name="each")
    gate = flow.approval("Go on?", after=[each], name="gate")
    flow.task("work", name="behind", after=[gate])
    await ledger.start(flow, [1, 2])
    await ledger.play(lambda publication: completed(publication.node_key.node))
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "gate", "granted": False, "by": "ada"})

    graph = await shown(ledger)

    assert graph.result("w", "each") == [b'["each[0]","each[1]"]']
    assert graph.result("w", "gate") == [b"denied"]
    assert graph.result("w", "behind") == [b"predecessor"]


async def test_a_job_that_was_made_as_it_ended_has_its_value(ledger: Ledger) -> None:
    await ledger.start_one()
    ledger.seen.clear()  # it came in pieces, or RQ lost it
    await ledger.batch(ledger.finished(ledger.published.pop(), completed(7)), Show("w"))

    graph = await shown(ledger)

    assert graph.result("w", "one") == [b"7"]


async def test_a_job_that_rq_brought_is_not_told_that_it_is_started(ledger: Ledger) -> None:
    ledger.room = {"work": 0}
    await ledger.start(wide(("brought", "other")))
    await ledger.batch(Proposed((NodeKey("w", "brought"),), "work"))
    await ledger.fill("work", 1)
    before = await ledger.states()

    graph = await shown(ledger)

    assert before == {"brought": TaskState.PUBLISHED, "other": TaskState.PUBLISHED}
    assert {node: graph.state("w", node) for node in before} == {
        "brought": JobState.QUEUED,  # as it was made: the bridge that took it has started it
        "other": JobState.STARTED,
    }


async def test_many_entries_that_wait_keep_no_values(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "MOST_WITH_OUTCOMES", 3)

    graph = await run(ledger, completed("first"), completed("second"), failed())

    values = [graph.result("w", f"n{number}") for number in range(3)]
    assert values == [[b"null"], [b"null"], [b"handler_error"]]
