"""A limit of time does not end what ended in time, while nobody was there to hear it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from coditect import Agent, Workflow
from coditect.agent.program import running_agent
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Consumer
from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.shards.timers import GRACE_SECONDS
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.shards.loop_clock import LoopClock

DEADLINE_SECONDS = 20
TAKES_SECONDS = 5


class Slow(MemoryBroker):
    """Its answers take a while, as those of a broker with many clients do."""

    async def consume(self, *args: Any, **options: Any) -> Consumer:
        await asyncio.sleep(1)
        return await super().consume(*args, **options)


class Plane:
    """One agent, a client, and dispatchers as they are wanted, one after the other."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._enter = stack.enter_async_context
        self._server, self._clock = MemoryServer(), LoopClock()
        self.ended: list[str] = []

    async def open(self) -> None:
        self._registry = MemoryRegistry(now=asyncio.get_running_loop().time)
        self._database = await self._enter(MemoryDatabase())
        worker = Agent("worker")

        @worker.capability("some.work")
        async def work(seconds: int) -> None:
            await asyncio.sleep(seconds)
            self.ended.append("work")

        self.agent = await self._enter(MemoryBroker(self._server, name="worker"))
        await self._enter(
            running_agent(
                worker,
                broker=self.agent,
                registry=self._registry,
                settings=Settings(),
                clock=self._clock,
                drain=asyncio.Event(),
            )
        )
        mine = await self._enter(MemoryBroker(self._server, name="client"))
        self.client = await self._enter(Client(mine, self._registry, clock=self._clock))

    @asynccontextmanager
    async def dispatcher(self) -> AsyncIterator[tuple[Dispatcher, MemoryBroker]]:
        async with Slow(self._server, name="dispatcher") as broker:
            plane = running_dispatcher(
                broker=broker,
                registry=self._registry,
                clock=self._clock,
                database=self._database,
                options=DispatcherOptions(shards=1),
            )
            async with plane as running:
                yield running, broker

    async def start(self, seconds: int) -> Run:
        flow = Workflow("one")
        flow.task("some.work", seconds, name="only", deadline=f"{DEADLINE_SECONDS}s")
        return await self.client.start(flow)


@asynccontextmanager
async def plane() -> AsyncIterator[Plane]:
    async with AsyncExitStack() as stack:
        made = Plane(stack)
        await made.open()
        yield made


@in_virtual_time
async def test_result_that_waited_for_the_next_dispatcher_counts() -> None:
    async with plane() as made:
        async with made.dispatcher():
            run = await made.start(TAKES_SECONDS)
            await asyncio.sleep(1)
        await asyncio.sleep(DEADLINE_SECONDS + 10)
        assert made.ended == ["work"]

        async with made.dispatcher():
            assert await run.wait(timeout="10s") == "completed"


@in_virtual_time
async def test_limit_holds_when_the_next_dispatcher_has_heard_all() -> None:
    async with plane() as made:
        async with made.dispatcher():
            run = await made.start(10 * DEADLINE_SECONDS)
            await asyncio.sleep(1)
            made.agent.vanish()
        await asyncio.sleep(DEADLINE_SECONDS + 10)

        async with made.dispatcher():
            assert await run.wait(timeout="10s") == "failed"


@in_virtual_time
async def test_limit_that_is_over_as_a_connection_stands_again_is_held() -> None:
    async with plane() as made, made.dispatcher() as (dispatcher, broker):
        now = asyncio.get_running_loop().time
        began, run = now(), await made.start(10 * DEADLINE_SECONDS)
        await asyncio.sleep(DEADLINE_SECONDS - 0.5 - (now() - began))
        made.agent.vanish()

        broker.drop()
        await asyncio.sleep(0.3)
        stood = broker.connected
        ended = run.wait(timeout="10s")

        assert stood, "the limit is over later"
        assert await ended == "failed"
        assert now() - began > DEADLINE_SECONDS - 0.5 + GRACE_SECONDS
        await eventually(lambda: not len(dispatcher.ownership.workers[0].in_flight))
