"""Dispatchers that come and go in order under load: nobody is evicted, and nothing is executed twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from coditect import Agent, Context, Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.workflow_run import Run
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.store.memory import Disk, Faults, MemoryDatabase
from tests.support import eventually

SHARDS = 8
WIDTH, DEPTH = 8, 5
SLOW = Faults(conflict=0.01, latency_seconds=(0.0005, 0.003))


class Evictions:
    """The broker's, which remembers whose connections it was asked to close."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self.asked: list[str] = []

    async def evict(self, process: str) -> int:
        self.asked.append(process)
        return await self._server.evict(process)

    async def queues(self) -> frozenset[str]:
        return await self._server.queues()

    async def messages(self, queue: str) -> int | None:
        return await self._server.messages(queue)


def layered() -> Workflow:
    flow = Workflow("layered")
    layer = [flow.task("work", name=f"l0n{number}") for number in range(WIDTH)]
    for level in range(1, DEPTH):
        layer = [
            flow.task("work", name=f"l{level}n{number}", after=[layer[number], layer[number - 1]])
            for number in range(WIDTH)
        ]
    return flow


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.endurance) for seed in range(1, 6))])
async def test_scaling_from_one_to_four_and_back_under_load_repeats_nothing_and_evicts_nobody(seed: int) -> None:
    executed: Counter[str] = Counter()
    worker = Agent("worker", slots=8)

    @worker.capability("work")
    async def work(_: None, ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.3 if executed.total() % 50 else 2.5)  # some are acknowledged early

    async with TestFleet([worker], replicas=3, seed=seed) as fleet, AsyncExitStack() as stack:
        fleet.kill("dispatcher")
        evictions = Evictions(fleet.server)
        disk = Disk()

        async def join(number: int) -> tuple[Dispatcher, AsyncExitStack]:
            enter = (own := await stack.enter_async_context(AsyncExitStack())).enter_async_context
            store = await enter(MemoryDatabase(disk, faults=SLOW, seed=number))
            broker = await enter(MemoryBroker(fleet.server, name=f"dispatcher-{number}"))
            running = running_dispatcher(
                broker=broker,
                registry=fleet.registry,
                clock=fleet._clock(f"dispatcher-{number}"),
                database=store,
                evict=evictions,
                options=DispatcherOptions(shards=SHARDS, owner=f"dispatcher-{number}"),
            )
            return await enter(running), own

        first, _ = await join(1)
        runs: list[Run] = []
        enough = asyncio.Event()
        starting = asyncio.create_task(keep_starting(fleet, runs, enough))
        await asyncio.sleep(2)
        joined = []
        for number in (2, 3, 4):
            joined.append(await join(number))
            await asyncio.sleep(0.9)
        await eventually(lambda: all(one.ownership.workers for one, _ in joined))
        for _, own in joined:
            await own.aclose()
            await asyncio.sleep(0.9)
        await eventually(lambda: len(first.ownership.workers) == SHARDS)
        enough.set()
        await starting

        ends = {await run.wait(timeout="5m") for run in runs}

    assert ends == {WorkflowState.COMPLETED}
    assert len(executed) == len(runs) * WIDTH * DEPTH
    assert ({task: times for task, times in executed.items() if times > 1}, evictions.asked) == ({}, [])


async def keep_starting(fleet: TestFleet, runs: list[Run], enough: asyncio.Event) -> None:
    """One more workflow each half second."""
    while not enough.is_set():
        runs.append(await fleet.client.start(layered()))
        await asyncio.sleep(0.5)
