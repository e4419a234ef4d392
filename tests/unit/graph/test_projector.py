from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

import pytest

from coditect.aio.supervisor import Supervisor
from dispatcher.taskgraph import projector
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import Change, Job, JobState
from dispatcher.taskgraph.projector import Projector
from tests.contract.graph.scene import Scene
from tests.support import eventually

FINISHED = JobState.FINISHED


@asynccontextmanager
async def running(one: Projector) -> AsyncIterator[Projector]:
    async with Supervisor() as background:
        background.start(one.run(), name="projector")
        yield one


@pytest.fixture
def graph() -> MemoryTaskGraph:
    return MemoryTaskGraph()


@pytest.fixture
def scene(graph: MemoryTaskGraph) -> Scene:
    return Scene(graph)


async def test_what_is_appended_is_told_in_order(scene: Scene) -> None:
    async with running(Projector(scene.graph, scene.shard)) as told:
        told.append([scene.job("a"), scene.job("b", "a"), scene.change("a", FINISHED)])
        told.append([scene.change("b", FINISHED), scene.job("c")])
        await told.told()

        assert told.waiting == 0
        assert await scene.counts() == {"finished": 2, "queued": 1}


async def test_rest_of_a_commit_that_was_told_in_part_waits(scene: Scene, graph: MemoryTaskGraph) -> None:
    def fail() -> None:
        graph.failing = True

    one = Projector(graph, scene.shard, moved=fail)
    async with running(one):
        one.append([scene.job("b"), scene.change("b", FINISHED)])
        await eventually(lambda: not one.available)

        assert one.waiting == 1
        assert await scene.counts() == {"queued": 1}


async def test_outage_delays_and_loses_nothing(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with running(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a")])
        one.append([scene.change("a", FINISHED)])
        await eventually(lambda: not one.available)
        assert one.waiting == 2

        graph.failing = False
        await one.told()

        assert one.available
        assert one.waiting == 0
        assert await scene.counts() == {"finished": 1}


async def test_too_much_is_thrown_away_and_said(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with running(Projector(graph, scene.shard, most_waiting=2)) as one:
        one.append([scene.job("a"), scene.job("b")])
        await eventually(lambda: not one.available)
        one.append([scene.job("c")])
        told_of_overflow = one.overflowed
        assert told_of_overflow
        assert one.waiting == 0

        graph.failing = False
        await one.told()
        one.reconciled()
        one.append([scene.job("d")])
        await one.told()

        assert not one.overflowed
        assert one.waiting == 0
        assert graph.state(scene.workflow, "c") is None


async def test_nobody_waits_for_what_is_not_told_any_more(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with running(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a")])
        waiting = asyncio.ensure_future(one.told())
        await eventually(lambda: not one.available)
        assert not waiting.done()

        one.close()
        one.append([scene.job("b")])

        async with asyncio.timeout(5):
            await waiting
            await one.told()


async def test_whoever_waits_is_not_kept_by_what_comes_behind(scene: Scene, graph: MemoryTaskGraph) -> None:
    create, numbers = graph.create, count(2)

    async def create_in_time(jobs: Sequence[Job]) -> Sequence[Job]:
        await asyncio.sleep(0)
        return await create(jobs)

    graph.create = create_in_time  # type: ignore[method-assign]
    one = Projector(graph, scene.shard, moved=lambda: one.append([scene.job(f"n{next(numbers)}")]))
    async with running(one):
        one.append([scene.job("a")])

        async with asyncio.timeout(5):
            await one.told()

        assert one.waiting > 0


async def test_nothing_to_tell_is_told_at_once(scene: Scene) -> None:
    one = Projector(scene.graph, scene.shard)

    one.append([])

    async with asyncio.timeout(1):
        await one.told()


async def test_job_that_is_there_already_is_put_right(scene: Scene, graph: MemoryTaskGraph) -> None:
    await scene.create(scene.job("a"), scene.job("b"))
    assert await scene.adopt(1) == ["a"]

    async with running(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a"), scene.job("b", state=FINISHED), scene.job("c", "b")])
        await one.told()

    assert await scene.counts() == {"queued": 2, "finished": 1}


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
    async with running(one):
        await one.told()

    assert told == [[FINISHED, JobState.STARTED]]
    assert await scene.counts() == {"finished": 1, "started": 1}


@pytest.mark.parametrize(("state", "at_once"), [(JobState.STARTED, False), (FINISHED, False), (JobState.QUEUED, True)])
async def test_only_what_is_to_be_adopted_does_not_wait_for_others(
    scene: Scene, graph: MemoryTaskGraph, monkeypatch: pytest.MonkeyPatch, state: JobState, at_once: bool
) -> None:
    monkeypatch.setattr(projector, "GATHER_SECONDS", 1_000.0)
    async with running(Projector(graph, scene.shard)) as one:
        one.append([scene.job("a")])
        await one.told()
        one.append([scene.change("a", state)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert (one.waiting == 0) is at_once
        await one.told()
        assert one.waiting == 0
