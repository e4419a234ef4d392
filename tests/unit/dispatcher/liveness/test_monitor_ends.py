"""A monitor that is canceled, wherever it stands, ends and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.registry.memory import MemoryRegistry
from dispatcher.ledger.ownership import leases
from dispatcher.liveness import left_queues, monitor, ping
from dispatcher.liveness.fleet import Fleet
from dispatcher.liveness.monitor import LEASE, Monitor
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually
from tests.unit.registry.samples import IDLE, make_registration

MANY_STEPS = 120
"""Of the event loop: an agent is found, pinged, cut off, and its queues removed within fewer."""


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the monitor waits for is over in a step of the event loop."""
    monkeypatch.setattr(monitor, "LOOK_SECONDS", 0)
    monkeypatch.setattr(monitor, "EVICTION_PAUSES", (0, 0))
    monkeypatch.setattr(left_queues, "TIDY_PAUSES", (0, 0))
    monkeypatch.setattr(ping, "ANSWER_SECONDS", 0)


class Watched:
    """A monitor over one agent that does not answer; broker and store outlive it."""

    def __init__(self, broker: MemoryBroker, database: MemoryDatabase) -> None:
        self.broker = broker
        self.database = database
        self.lost: list[AgentId] = []

    async def watch(self, lease_seconds: float = 0.001) -> None:
        registry = MemoryRegistry()
        await registry.register(make_registration(), IDLE, lease_seconds=lease_seconds)
        await self.database.run(lambda tr: leases.renew(tr, "first", 1))
        events = Events(self.broker, SystemClock(), source="/dispatcher")
        fleet = Fleet(registry)
        async with Monitor(
            fleet, self.broker, events, self.database, owner="first", evict=None, on_gone=self.lost.append
        ):
            await asyncio.Event().wait()

    async def canceled(self, steps: int, *again: int) -> asyncio.Task[None]:
        """Watches for so many steps of the event loop; then is canceled, and again after some more."""
        watching = asyncio.create_task(self.watch())
        for count in (steps, *again):
            for _ in range(count):
                await asyncio.sleep(0)
            watching.cancel()
        await asyncio.wait([watching], timeout=5)
        return watching

    async def consumers(self) -> int:
        stats = await self.broker.stats("reply.monitor-first")
        return 0 if stats is None else stats.consumers

    async def leader(self) -> str:
        return (await self.database.read(lambda tr: leases.read(tr, LEASE))).owner


@asynccontextmanager
async def opened() -> AsyncIterator[Watched]:
    async with MemoryDatabase() as database, MemoryBroker(MemoryServer(), name="first") as broker:
        await broker.declare(base_topology())
        before = asyncio.all_tasks()
        yield Watched(broker, database)
        assert asyncio.all_tasks() == before, "no task is left"


async def test_monitor_that_is_canceled_at_any_step_ends_and_leaves_nothing() -> None:
    for steps in range(MANY_STEPS):
        async with opened() as watched:
            watching = await watched.canceled(steps)

            assert watching.cancelled(), steps
            assert (await watched.consumers(), await watched.leader()) == (0, ""), steps


async def test_monitor_that_is_canceled_after_it_lost_an_agent_leaves_nothing() -> None:
    async with opened() as watched:
        watching = asyncio.create_task(watched.watch(lease_seconds=0.5))
        await eventually(lambda: bool(watched.lost))
        watching.cancel()
        await asyncio.wait([watching], timeout=5)

        assert watching.cancelled()
        assert (await watched.consumers(), await watched.leader()) == (0, "")


@pytest.mark.parametrize("again", range(6))
async def test_monitor_that_is_canceled_again_while_it_ends_leaves_no_task(again: int) -> None:
    for steps in range(0, MANY_STEPS, 4):
        async with opened() as watched:
            watching = await watched.canceled(steps, again)

            assert watching.cancelled(), steps
            assert await watched.consumers() == 0, steps
