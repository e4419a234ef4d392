"""A shard that is handed over to another dispatcher: what its former owner published is not published again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from coditect import Agent, Workflow
from coditect.agent.program import running_agent
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client import Client
from coditect.clock import SystemClock
from coditect.registry.memory import MemoryRegistry
from coditect.settings import Settings
from dispatcher.program import Dispatcher, Options, running_dispatcher
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually

SHARDS = 4
WORKFLOWS = 12


async def test_nothing_that_was_published_runs_twice_when_its_shard_is_handed_over() -> None:
    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    executed: list[str] = []
    may_end = asyncio.Event()
    worker = Agent("worker", slots=2 * WORKFLOWS)

    @worker.capability("hand.over")
    async def work(number: int) -> None:
        executed.append(str(number))
        await may_end.wait()

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(MemoryDatabase())

        async def dispatcher() -> Dispatcher:
            options = Options(shards=SHARDS)
            own = await enter(MemoryBroker(server, name=options.owner))
            plane = running_dispatcher(broker=own, registry=registry, clock=clock, database=database, options=options)
            return await enter(plane)

        first = await dispatcher()
        broker = await enter(MemoryBroker(server, name="worker"))
        agent = running_agent(
            worker, broker=broker, registry=registry, settings=Settings(), clock=clock, drain=asyncio.Event()
        )
        await enter(agent)
        client = await enter(Client(await enter(MemoryBroker(server, name="client")), registry, clock=clock))
        runs = []
        for number in range(WORKFLOWS):
            flow = Workflow("one")
            flow.task("hand.over", number, name="only")
            runs.append(await client.start(flow))
        await eventually(lambda: len(executed) == WORKFLOWS)

        second = await dispatcher()
        await eventually(lambda: len(second.tenure.desks) == SHARDS // 2 == len(first.tenure.desks))
        may_end.set()

        assert [await run.wait(timeout="10s") for run in runs] == ["completed"] * WORKFLOWS
        assert len(executed) == WORKFLOWS
        nodes = [row for run in runs async for row in run.nodes()]
        assert {row.fence for row in nodes} == {1}
