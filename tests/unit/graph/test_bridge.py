from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from coditect.aio.supervisor import Supervisor
from dispatcher.taskgraph.bridge import Bridge
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import JobState, Proposal, RequestKind, ToolRequest
from tests.contract.graph.scene import CAPABILITY, Scene
from tests.support import eventually


class RecordingWorkers:
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
    async with Supervisor() as background:
        bridge = Bridge(graph, workers, adopt_seconds=0.01, look_seconds=0.01)
        bridge.open(background)
        yield bridge


async def test_queued_jobs_are_proposed_while_there_is_room(
    graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers
) -> None:
    workers.free = 2
    await scene.create(*[scene.job(f"n{number}") for number in range(3)])

    async with running(graph, workers) as bridge:
        await eventually(lambda: workers.claimed == ["n0", "n1"])
        assert graph.state(scene.workflow, "n2") is JobState.QUEUED
        workers.free = 1
        bridge.wake()
        await eventually(lambda: workers.claimed == ["n0", "n1", "n2"])


async def test_capability_that_was_not_found_is_not_looked_for_again_at_once_and_holds_up_no_other(
    scene: Scene,
) -> None:
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
    bridge = Bridge(asked, TwoWorkers(asked, scene.shard), again_seconds=3_600)

    assert [await bridge.adopt() for _ in range(4)] == [1, 1, 0, 0]
    assert rooms == [{CAPABILITY: 1, "absent": 5}, {CAPABILITY: 1}, {CAPABILITY: 1}, {}]


async def test_stopped_bridge_proposes_nothing_and_a_new_one_goes_on(
    graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers
) -> None:
    async with running(graph, workers):
        await scene.create(scene.job("a"), scene.job("b", "a"))
        await eventually(lambda: workers.claimed == ["a"])
    await scene.tell(JobState.FINISHED, "a")
    assert await scene.counts() == {"finished": 1, "queued": 1}

    async with running(graph, workers):
        await eventually(lambda: workers.claimed == ["a", "b"])


async def test_requests_come_until_the_job_is_told_its_state(
    graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers
) -> None:
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


async def test_lost_shard_is_reconciled_and_remembered(
    graph: MemoryTaskGraph, scene: Scene, workers: RecordingWorkers
) -> None:
    async with running(graph, workers):
        await eventually(lambda: graph.known([scene.shard]))
        graph.wipe()
        await eventually(lambda: graph.known([scene.shard]))


async def test_a_shard_new_to_rq_is_no_warning_and_a_lost_one_is(
    graph: MemoryTaskGraph, workers: RecordingWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = Bridge(graph, workers)

    await bridge.look()
    await bridge.look()
    graph.wipe()
    before = len(caplog.records)
    await bridge.look()

    levels = [[one.levelno for one in records] for records in (caplog.records[:before], caplog.records[before:])]
    assert logging.WARNING not in levels[0]
    assert levels[1] == [logging.WARNING]


async def test_what_people_asked_for_while_nobody_looked_is_heard_before_the_shard_is_written_anew(
    graph: MemoryTaskGraph, scene: Scene
) -> None:
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
