"""A dispatcher dies after the last commit of a workflow, before RQ is told: whoever takes over has RQ put right."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from coditect import Agent, Workflow
from coditect.client.workflow_run import Run
from coditect.model.retry import Retry
from coditect.testing import TestFleet
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.recorder.history import silent
from dispatcher.recorder.ports import RecordedDatabase, RecordedGraph
from dispatcher.store.memory import Disk, MemoryDatabase
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import JobState, job_state
from tests.contract.graph.scene import counted

NAMES = ("first", "second")
SHARDS = 2


class Fleet(TestFleet):
    """Two dispatchers with one ledger and one RQ, of which any dies at a failpoint when that is asked for."""

    __test__ = False
    graph: MemoryTaskGraph
    disk: Disk
    die_at = ""

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        self.graph, self.disk = MemoryTaskGraph(), Disk()
        return {name: partial(self._dispatcher, name) for name in NAMES}

    @asynccontextmanager
    async def _dispatcher(self, name: str, *, owner: str, **ports: Any) -> AsyncIterator[Any]:
        def reached(point: str) -> None:
            if point == self.die_at:
                self.die_at = ""
                self.kill(name)
                current = asyncio.current_task()
                assert current is not None
                current.cancel()
                raise asyncio.CancelledError  # a process that is killed does not finish its step

        graph: Any = RecordedGraph(self.graph, reached=reached)
        async with RecordedDatabase(MemoryDatabase(self.disk), silent, reached=reached) as database:
            options = DispatcherOptions(shards=SHARDS, owner=owner)
            async with running_dispatcher(database=database, graph=graph, options=options, **ports) as running:
                yield running

    async def in_rq(self) -> Counter[JobState]:
        return await counted(self.graph, range(SHARDS))


async def in_ledger(run: Run) -> Counter[JobState]:
    counts: Counter[JobState] = Counter()
    for state, number in (await run.overview()).counts.items():
        counts[job_state(state)] += number
    return counts


@pytest.mark.parametrize("point", ["tell.before", "commit.after"])
@pytest.mark.parametrize("ends", ["completed", "failed"])
async def test_jobs_of_a_workflow_that_ended_as_its_dispatcher_died_are_as_the_ledger_has_them(
    point: str, ends: str
) -> None:
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
