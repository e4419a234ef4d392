"""Control planes in memory: dispatchers, agents and clients as a test wants them, on one broker and one store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from chaos.history import silent
from chaos.recorder import RecordedDatabase, RecordedGraph
from chaos.simulated_store import Disk, SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect import Agent
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from dispatcher.liveness.eviction import Evictor
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.taskgraph.port import TaskGraph


@dataclass
class Plane:
    """Everything ends with the stack."""

    stack: AsyncExitStack
    database: SimulatedDatabase
    registry: MemoryRegistry
    clock: SystemClock
    server: MemoryServer = field(default_factory=MemoryServer)

    async def broker(self, name: str) -> MemoryBroker:
        return await self.stack.enter_async_context(MemoryBroker(self.server, name=name))

    async def dispatcher(
        self,
        broker: MemoryBroker | None = None,
        *,
        graph: TaskGraph | None = None,
        stack: AsyncExitStack | None = None,
        **options: Any,
    ) -> Dispatcher:
        """One more dispatcher; with a stack of its own it ends with that one."""
        chosen = DispatcherOptions(**options)
        running = running_dispatcher(
            broker=broker or await self.broker(chosen.owner),
            registry=self.registry,
            clock=self.clock,
            database=self.database,
            graph=graph,
            options=chosen,
        )
        return await (stack or self.stack).enter_async_context(running)

    async def agent(self, agent: Agent, **settings: Any) -> MemoryBroker:
        """One more agent; gives its connection."""
        broker, drain = await self.broker(agent.name), asyncio.Event()
        running = running_agent(
            agent, broker=broker, registry=self.registry, settings=Settings(**settings), clock=self.clock, drain=drain
        )
        await self.stack.enter_async_context(running)
        return broker

    async def client(self) -> Client:
        client = Client(await self.broker("client"), self.registry, clock=self.clock, name="client-test")
        return await self.stack.enter_async_context(client)


@asynccontextmanager
async def plane(*, registry: MemoryRegistry | None = None, clock: SystemClock | None = None) -> AsyncIterator[Plane]:
    async with SimulatedDatabase() as database, AsyncExitStack() as stack:
        yield Plane(stack, database, registry or MemoryRegistry(), clock or SystemClock())


def dispatcher_of(
    fleet: TestFleet,
    broker: MemoryBroker,
    database: SimulatedDatabase,
    *,
    owner: str,
    evict: Evictor | None = None,
    graph: TaskGraph | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[Dispatcher]:
    """One more dispatcher of the fleet."""
    return running_dispatcher(
        broker=broker,
        registry=fleet.registry,
        clock=fleet._clock(owner),
        database=database,
        evict=evict,
        graph=graph,
        options=DispatcherOptions(owner=owner, **options),
    )


def lone_dispatcher(
    broker: MemoryBroker,
    database: SimulatedDatabase,
    *,
    registry: MemoryRegistry | None = None,
    graph: TaskGraph | None = None,
    shards: int = 1,
    **options: Any,
) -> AbstractAsyncContextManager[Dispatcher]:
    """A dispatcher of one shard, if it is not told another number, with a registry of its own."""
    return running_dispatcher(
        broker=broker,
        registry=registry or MemoryRegistry(),
        clock=SystemClock(),
        database=database,
        graph=graph,
        options=DispatcherOptions(shards=shards, **options),
    )


class MortalFleet(TestFleet):
    """A fleet whose store and RQ outlive its dispatchers, of which any dies at a failpoint when that is asked for."""

    __test__ = False
    names: tuple[str, ...] = ("dispatcher",)
    shards = 1
    die_at = ""

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        self.graph, self.disk = MemoryTaskGraph(), Disk()
        return {name: partial(self._dispatcher, name) for name in self.names}

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
        async with RecordedDatabase(SimulatedDatabase(self.disk), silent, reached=reached) as database:
            options = DispatcherOptions(shards=self.shards, owner=owner)
            async with running_dispatcher(database=database, graph=graph, options=options, **ports) as running:
                yield running
