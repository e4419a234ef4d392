"""A fleet on the in-memory twins, in real time, with the HTTP API and the dashboard on a port of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.api.access import Access
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.model.ids import AgentId
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.telemetry.tracing import NO_TRACING, Tracing
from dispatcher.program import running_dispatcher
from tests.api import services_of, serving


@dataclass(frozen=True, slots=True)
class Stage:
    """What a test of the dashboard plays on."""

    url: str
    client: Client


@asynccontextmanager
async def staged(
    agents: Sequence[Agent],
    *,
    access: Access | None = None,
    tracing: Tracing = NO_TRACING,
    trace_url: str | None = None,
) -> AsyncIterator[Stage]:
    """Dispatcher, agents and API run until the block ends; the API's client traces by `tracing`."""
    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    async with AsyncExitStack() as stack:

        async def broker(name: str) -> MemoryBroker:
            return await stack.enter_async_context(MemoryBroker(server, name=name))

        own = await broker("dispatcher-1")
        plane = running_dispatcher(broker=own, registry=registry, clock=clock, owner="dispatcher-1")
        await stack.enter_async_context(plane)
        for number, agent in enumerate(agents, 1):
            identity = AgentId(f"{agent.name}-{number:08x}")
            own = await broker(identity)
            await stack.enter_async_context(_living(agent, identity, own, registry))
        client = await stack.enter_async_context(Client(await broker("client"), registry, tracing=tracing))
        services = await stack.enter_async_context(services_of(server, registry, client, access=access))
        url, _ = await stack.enter_async_context(serving(replace(services, trace_url=trace_url)))
        yield Stage(url, client)


@asynccontextmanager
async def _living(
    agent: Agent, identity: AgentId, broker: MemoryBroker, registry: MemoryRegistry
) -> AsyncIterator[None]:
    """The agent lives until the block ends or it is asked to drain."""
    drain, ready = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        settings = Settings(drain_seconds=1.0)
        async with running_agent(
            agent,
            broker=broker,
            registry=registry,
            settings=settings,
            clock=SystemClock(),
            drain=drain,
            agent_id=identity,
        ):
            ready.set()
            await drain.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(live())
        await ready.wait()
        yield
        drain.set()
