from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count

import pytest

from chaos.simulated_task_graph import MemoryTaskGraph
from coditect.aio.supervisor import Supervisor
from dispatcher.scheduling import scheduler
from dispatcher.scheduling.scheduler import Bridge, Scheduler
from dispatcher.taskgraph import projector
from dispatcher.taskgraph.port import Change, Job, JobState, Proposal, RequestKind, ToolRequest
from dispatcher.taskgraph.projector import Projector
from tests.contract.graph.scene import CAPABILITY, Scene
from tests.support import eventually


class RecordingWorkers(Scheduler):
    """The shard workers of one shard; claims nothing."""

    def __init__(self, graph: MemoryTaskGraph, shard: int) -> None:
        self.graph = graph
        self.shard = shard
        self.free = 100
        self.claimed: list[str] = []
        self.asked: list[ToolRequest] = []

    def shards(self) -> Collection[int]:
        return [self.shard]

    def room(self) -> Mapping[str, int]:
        return {CAPABILITY: self.free} if self.free else {}

    async def proposed(self, proposals: Sequence[Proposal]) -> None:
        self.free -= len(proposals)
        self.claimed += [one.node for one in proposals]

    async def requested(self, requests: Sequence[ToolRequest]) -> None:
        self.asked = [*requests]

    async def forgotten(self, shards: Collection[int]) -> None:
        for shard in shards:
            await self.graph.remember(shard)


@pytest.fixture
def graph() -> MemoryTaskGraph:
    return MemoryTaskGraph()


@pytest.fixture
def scene(graph: MemoryTaskGraph) -> Scene:
    return Scene(graph)


@pytest.fixture
def workers(graph: MemoryTaskGraph, scene: Scene) -> RecordingWorkers:
    return RecordingWorkers(graph, scene.shard)


@asynccontextmanager
async def running(graph: MemoryTaskGraph, workers: RecordingWorkers) -> AsyncIterator[Bridge]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scheduler, "ADOPT_SECONDS", 0.01)
        patched.setattr(scheduler, "RQ_CHECK_SECONDS", 0.01)
        async with Supervisor() as background:
            bridge = Bridge(graph, workers)
            bridge.open(background)
            yield bridge


async def test_queued_jobs_fill_the_room(graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers) -> None:
    workers.free = 2
    await scene.create(*[scene.job(f"n{number}") for number in range(3)])

    async with running(graph, workers) as bridge:
        await eventually(lambda: workers.claimed == ["n0", "n1"])
        assert graph.state(scene.workflow, "n2") is JobState.QUEUED
        workers.free = 1
        bridge.wake()
        await eventually(lambda: workers.claimed == ["n0", "n1", "n2"])


async def test_capability_that_was_not_found_holds_up_no_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[Mapping[str, int]] = []

    class TwoWorkers(RecordingWorkers):
        def room(self) -> Mapping[str, int]:
            return {CAPABILITY: 1, "absent": 5}

    class AskedGraph(MemoryTaskGraph):
        async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
            rooms.append(room)
            return await super().adopt(shards, room)

    asked = AskedGraph()
    await asked.create([scene.job("a"), scene.job("b")])
    monkeypatch.setattr(scheduler, "EMPTY_QUEUE_PAUSE_SECONDS", 3_600)
    bridge = Bridge(asked, TwoWorkers(asked, scene.shard))

    assert [await bridge.adopt() for _ in range(4)] == [1, 1, 0, 0]
    assert rooms == [{CAPABILITY: 1, "absent": 5}, {CAPABILITY: 1}, {CAPABILITY: 1}, {}]


async def test_stopped_bridge_is_followed(graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers) -> None:
    async with running(graph, workers):
        await scene.create(scene.job("a"), scene.job("b", "a"))
        await eventually(lambda: workers.claimed == ["a"])
    await scene.tell(JobState.FINISHED, "a")
    assert await scene.counts() == {"finished": 1, "queued": 1}

    async with running(graph, workers):
        await eventually(lambda: workers.claimed == ["a", "b"])


async def test_requests_come_until_told(graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers) -> None:
    workers.free = 0
    await scene.create(scene.job("a"))
    graph.cancel(scene.workflow, "a")

    async with running(graph, workers):
        await eventually(lambda: workers.asked == [scene.request("a", RequestKind.CANCEL)])
        await scene.tell(JobState.CANCELED, "a")
        workers.asked = []
        await scene.create(scene.job("b"))
        graph.stray(scene.workflow, "b")
        await eventually(lambda: workers.asked == [scene.request("b", RequestKind.STRAY)])


async def test_a_shard_new_to_rq_is_no_warning_and_a_lost_one_is_and_both_are_remembered(
    graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = Bridge(graph, workers)
    await bridge.look()
    assert await graph.known([scene.shard])
    await bridge.look()
    graph.wipe()
    before = len(caplog.records)
    await bridge.look()

    assert await graph.known([scene.shard])
    levels = [[one.levelno for one in records] for records in (caplog.records[:before], caplog.records[before:])]
    assert logging.WARNING not in levels[0]
    assert levels[1] == [logging.WARNING]


async def test_what_people_asked_for_meanwhile_is_heard_first(graph: MemoryTaskGraph, scene: Scene) -> None:
    class AnewWorkers(RecordingWorkers):
        async def forgotten(self, shards: Collection[int]) -> None:
            await scene.tell(JobState.FAILED, "a")
            await super().forgotten(shards)

    await scene.create(scene.job("a", state=JobState.FAILED))
    graph.requeue(scene.workflow, "a")
    workers = AnewWorkers(graph, scene.shard)

    await Bridge(graph, workers).look()

    assert workers.asked == [scene.request("a", RequestKind.REQUEUE)]
    assert await graph.known([scene.shard])


async def test_outage_is_said_once_and_survived(
    graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    await graph.remember(scene.shard)
    graph.failing = True
    with caplog.at_level(logging.WARNING):
        async with running(graph, workers) as bridge:
            await eventually(lambda: not bridge.available)
            graph.failing = False
            await scene.create(scene.job("a"))
            await eventually(lambda: workers.claimed == ["a"])
            assert bridge.available

    assert [record.message for record in caplog.records] == ["RQ does not answer; nodes are dispatched without it"]


FINISHED = JobState.FINISHED


@asynccontextmanager
async def projecting(one: Projector) -> AsyncIterator[Projector]:
    async with Supervisor() as background:
        background.start(one.run(), name="projector")
        yield one


async def test_what_is_appended_is_told_in_order(scene: Scene) -> None:
    async with projecting(Projector(scene.graph, scene.shard)) as told:
        told.append([])
        await told.flushed()
        told.append([scene.job("a"), scene.job("b", "a"), scene.change("a", FINISHED)])
        told.append([scene.change("b", FINISHED), scene.job("c")])
        await told.flushed()
        assert told.waiting == 0
        assert await scene.counts() == {"finished": 2, "queued": 1}


async def test_job_that_is_there_already_is_put_right(scene: Scene, graph: MemoryTaskGraph) -> None:
    await scene.create(scene.job("a"), scene.job("b"))
    assert await scene.adopt(1) == ["a"]
    async with projecting(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a"), scene.job("b", state=FINISHED), scene.job("c", "b")])
        await one.flushed()
    assert await scene.counts() == {"queued": 2, "finished": 1}


async def test_rest_of_a_commit_that_was_told_in_part_waits(scene: Scene, graph: MemoryTaskGraph) -> None:
    def fail() -> None:
        graph.failing = True

    one = Projector(graph, scene.shard, moved=fail)
    async with projecting(one):
        one.append([scene.job("b"), scene.change("b", FINISHED)])
        await eventually(lambda: not one.available)

        assert one.waiting == 1
        assert await scene.counts() == {"queued": 1}


async def test_outage_delays_and_loses_nothing(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with projecting(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a")])
        one.append([scene.change("a", FINISHED)])
        await eventually(lambda: not one.available)
        assert one.waiting == 2

        graph.failing = False
        await one.flushed()

        assert one.available
        assert one.waiting == 0
        assert await scene.counts() == {"finished": 1}


async def test_too_much_is_thrown_away_and_said(
    scene: Scene, graph: MemoryTaskGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.failing = True
    monkeypatch.setattr(projector, "MOST_WAITING", 2)
    async with projecting(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a"), scene.job("b")])
        await eventually(lambda: not one.available)
        one.append([scene.job("c")])
        told_of_overflow = one.overflowed
        assert told_of_overflow
        assert one.waiting == 0

        graph.failing = False
        await one.flushed()
        one.reconciled()
        one.append([scene.job("d")])
        await one.flushed()

        assert not one.overflowed
        assert one.waiting == 0
        assert graph.state(scene.workflow, "c") is None


async def test_nobody_waits_for_what_is_not_told_any_more(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with projecting(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a")])
        waiting = asyncio.ensure_future(one.flushed())
        await eventually(lambda: not one.available)
        assert not waiting.done()

        one.close()
        one.append([scene.job("b")])

        async with asyncio.timeout(5):
            await waiting
            await one.flushed()


async def test_whoever_waits_is_not_kept_by_what_comes_behind(scene: Scene, graph: MemoryTaskGraph) -> None:
    create, numbers = graph.create, count(2)

    async def create_in_time(jobs: Sequence[Job]) -> Sequence[Job]:
        await asyncio.sleep(0)
        return await create(jobs)

    graph.create = create_in_time  # type: ignore[method-assign]
    one = Projector(graph, scene.shard, moved=lambda: one.append([scene.job(f"n{next(numbers)}")]))
    async with projecting(one):
        one.append([scene.job("a")])

        async with asyncio.timeout(5):
            await one.flushed()

        assert one.waiting > 0


async def test_start_that_is_over_when_rq_is_told_is_not_told(scene: Scene, graph: MemoryTaskGraph) -> None:
    told: list[list[JobState]] = []
    tell = graph.tell

    async def listen(changes: Sequence[Change]) -> None:
        told.append([change.state for change in changes])
        await tell(changes)

    graph.tell = listen  # type: ignore[method-assign]
    one = Projector(graph, scene.shard)
    one.append([scene.job("a"), scene.job("b", "a")])
    one.append([scene.change("a", JobState.STARTED)])
    one.append([scene.change("a", FINISHED), scene.change("b", JobState.STARTED)])
    async with projecting(one):
        await one.flushed()

    assert told == [[FINISHED, JobState.STARTED]]
    assert await scene.counts() == {"finished": 1, "started": 1}


@pytest.mark.parametrize(("state", "at_once"), [(JobState.STARTED, False), (FINISHED, False), (JobState.QUEUED, True)])
async def test_only_what_is_to_be_adopted_does_not_wait_for_others(
    scene: Scene, graph: MemoryTaskGraph, monkeypatch: pytest.MonkeyPatch, state: JobState, at_once: bool
) -> None:
    monkeypatch.setattr(projector, "JOB_GATHER_SECONDS", 1_000.0)
    async with projecting(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a")])
        await one.flushed()
        one.append([scene.change("a", state)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert (one.waiting == 0) is at_once
        await one.flushed()
        assert one.waiting == 0
