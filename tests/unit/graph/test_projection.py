from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

import pytest

from coditect.aio.supervisor import Supervisor
from dispatcher.taskgraph import projection
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import Change, Job, JobState
from dispatcher.taskgraph.projection import Projection
from tests.contract.graph.scene import Scene
from tests.support import eventually

FINISHED = JobState.FINISHED


@asynccontextmanager
async def running(one: Projection) -> AsyncIterator[Projection]:
    async with Supervisor() as background:
        background.start(one.run(), name="projection")
        yield one


@pytest.fixture
def graph() -> MemoryTaskGraph:
    return MemoryTaskGraph()


@pytest.fixture
def scene(graph: MemoryTaskGraph) -> Scene:
    return Scene(graph)


async def test_what_is_appended_is_told_in_order_and_the_cursor_follows(scene: Scene) -> None:
    async with running(Projection(scene.graph, scene.shard)) as told:
        told.append(7, [scene.job("a"), scene.job("b", "a"), scene.change("a", FINISHED)])
        told.append(9, [scene.change("b", FINISHED), scene.job("c")])
        await told.drained()

        assert told.told == 9
        assert len(told) == 0
        assert await scene.counts() == {"finished": 2, "queued": 1}


async def test_cursor_stops_before_a_commit_that_was_told_in_part(scene: Scene, graph: MemoryTaskGraph) -> None:
    def fail() -> None:
        graph.failing = True

    one = Projection(graph, scene.shard, moved=fail)
    async with running(one):
        one.append(5, [scene.job("a")])
        await eventually(lambda: one.told == 5)
        one.append(8, [scene.job("b"), scene.change("b", FINISHED)])
        await eventually(lambda: not one.available)

        assert one.told == 5


async def test_outage_delays_and_loses_nothing(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with running(Projection(graph, scene.shard)) as one:
        one.append(1, [scene.job("a")])
        one.append(2, [scene.change("a", FINISHED)])
        await eventually(lambda: not one.available)
        assert one.told == 0

        graph.failing = False
        await one.drained()

        assert one.available
        assert one.told == 2
        assert await scene.counts() == {"finished": 1}


async def test_too_much_is_thrown_away_and_said(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with running(Projection(graph, scene.shard, most_waiting=2)) as one:
        one.append(1, [scene.job("a"), scene.job("b")])
        await eventually(lambda: not one.available)
        one.append(2, [scene.job("c")])
        told_of_overflow = one.overflowed
        assert told_of_overflow
        assert one.told == 2

        graph.failing = False
        await one.drained()
        one.reconciled()
        one.append(3, [scene.job("d")])
        await one.drained()

        assert not one.overflowed
        assert one.told == 3
        assert graph.state(scene.workflow, "c") is None


async def test_nobody_waits_for_what_is_not_told_any_more(scene: Scene, graph: MemoryTaskGraph) -> None:
    graph.failing = True
    async with running(Projection(graph, scene.shard)) as one:
        one.append(1, [scene.job("a")])
        waiting = asyncio.ensure_future(one.drained())
        await eventually(lambda: not one.available)
        assert not waiting.done()

        one.close()
        one.append(2, [scene.job("b")])

        async with asyncio.timeout(5):
            await waiting
            await one.drained()


async def test_whoever_waits_is_not_kept_by_what_comes_behind(scene: Scene, graph: MemoryTaskGraph) -> None:
    create, numbers = graph.create, count(2)

    async def create_in_time(jobs: Sequence[Job]) -> Sequence[Job]:
        await asyncio.sleep(0)
        return await create(jobs)

    graph.create = create_in_time  # type: ignore[method-assign]
    one = Projection(graph, scene.shard, moved=lambda: one.append(number := next(numbers), [scene.job(f"n{number}")]))
    async with running(one):
        one.append(1, [scene.job("a")])

        async with asyncio.timeout(5):
            await one.drained()

        assert len(one) > 0


async def test_nothing_to_tell_moves_the_cursor_at_once(scene: Scene) -> None:
    one = Projection(scene.graph, scene.shard)

    one.append(3, [])

    assert one.told == 3
    async with asyncio.timeout(1):
        await one.drained()


async def test_job_that_is_there_already_is_put_right(scene: Scene, graph: MemoryTaskGraph) -> None:
    await scene.create(scene.job("a"), scene.job("b"))
    assert await scene.adopt(1) == ["a"]

    async with running(Projection(graph, scene.shard)) as one:
        one.append(1, [scene.job("a"), scene.job("b", state=FINISHED), scene.job("c", "b")])
        await one.drained()

    assert await scene.counts() == {"queued": 2, "finished": 1}


async def test_start_that_is_over_when_rq_is_told_is_not_told(scene: Scene, graph: MemoryTaskGraph) -> None:
    told: list[list[JobState]] = []
    tell = graph.tell

    async def listen(changes: Sequence[Change]) -> None:
        told.append([change.state for change in changes])
        await tell(changes)

    graph.tell = listen  # type: ignore[method-assign]
    one = Projection(graph, scene.shard)
    one.append(1, [scene.job("a"), scene.job("b", "a")])
    one.append(2, [scene.change("a", JobState.STARTED)])
    one.append(3, [scene.change("a", FINISHED), scene.change("b", JobState.STARTED)])
    async with running(one):
        await one.drained()

    assert told == [[FINISHED, JobState.STARTED]]
    assert await scene.counts() == {"finished": 1, "started": 1}


@pytest.mark.parametrize(("state", "at_once"), [(JobState.STARTED, False), (FINISHED, False), (JobState.QUEUED, True)])
async def test_only_what_is_to_be_adopted_does_not_wait_for_others(
    scene: Scene, graph: MemoryTaskGraph, monkeypatch: pytest.MonkeyPatch, state: JobState, at_once: bool
) -> None:
    monkeypatch.setattr(projection, "GATHER_SECONDS", 1_000.0)
    async with running(Projection(graph, scene.shard)) as one:
        one.append(1, [scene.job("a")])
        await one.drained()
        one.append(2, [scene.change("a", state)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert (one.told == 2) is at_once
        await one.drained()
        assert one.told == 2
