"""The stage of the monitor's tests: a fleet in virtual time, and dispatchers that do nothing but watch it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from chaos.simulated_store import SimulatedDatabase
from coditect import Agent
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.testing import TestFleet
from coditect.wire import routing
from dispatcher.ledger.ownership import leases
from dispatcher.liveness.eviction import Evictor
from dispatcher.liveness.fleet import Fleet
from dispatcher.liveness.monitor import Monitor

BEAT_SECONDS = 0.4


@dataclass(slots=True)
class Watch:
    """A fleet, the store, and what the monitors told."""

    fleet: TestFleet
    database: SimulatedDatabase
    stack: AsyncExitStack
    dispatchers: dict[str, AsyncExitStack] = field(default_factory=dict)
    lost: dict[str, list[AgentId]] = field(default_factory=dict)
    """By the monitor's owner."""

    async def dispatcher(self, owner: str = "first", *, evict: Evictor | None) -> Monitor:
        """A dispatcher of this owner name, watching when this returns."""
        told = self.lost.setdefault(owner, [])
        stack = self.dispatchers[owner] = await self.stack.enter_async_context(AsyncExitStack())
        background = await stack.enter_async_context(Supervisor())
        await self._beat(owner, 1)
        background.start(self._beats(owner), name="beats")
        broker = await stack.enter_async_context(MemoryBroker(self.fleet.server, name=owner))
        return await stack.enter_async_context(
            Monitor(
                Fleet(self.fleet.registry),
                broker,
                Events(broker, SystemClock(), source="/dispatcher"),
                self.database,
                owner=owner,
                evict=evict,
                on_gone=told.append,
            )
        )

    async def end(self, owner: str) -> None:
        """The dispatcher ends in order."""
        await self.dispatchers[owner].aclose()

    async def _beats(self, owner: str) -> None:
        for beat in range(2, 100_000):
            await asyncio.sleep(BEAT_SECONDS)
            await self._beat(owner, beat)

    async def _beat(self, owner: str, beat: int) -> None:
        await self.database.run(lambda tr: leases.renew(tr, owner, beat))

    def told(self, kind: str) -> list[str]:
        """Whom the events of this kind were about."""
        return [event.subject for event in self.fleet.events if event.type == kind]

    def queues(self, agent: AgentId) -> list[str]:
        """Which of the agent's own queues there are."""
        names = (f"agent.{agent}.mail", f"agent.{agent}.tasks", f"agent.{agent}.next", routing.agent_replies(agent))
        return [name for name in names if self.fleet.server.find(name) is not None]


class ServerEvictor:
    """The evictor that the broker in memory is, for those who change a part of it."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    async def evict(self, process: str) -> int:
        return await self._server.evict(process)

    async def queues(self) -> frozenset[str]:
        return await self._server.queues()

    async def messages(self, queue: str) -> int | None:
        return await self._server.messages(queue)


@asynccontextmanager
async def open_watch(agents: Iterable[Agent], *, replicas: int = 2, seed: int = 0) -> AsyncIterator[Watch]:
    """The fleet without its own control plane, which has a monitor, too."""
    async with (
        TestFleet(agents, replicas=replicas, seed=seed) as fleet,
        SimulatedDatabase() as database,
        AsyncExitStack() as stack,
    ):
        fleet.kill("dispatcher")
        yield Watch(fleet, database, stack)
