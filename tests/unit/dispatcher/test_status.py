"""How the control plane stands: every dispatcher says itself what it counted, whoever is asked."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.control_plane import asking
from coditect.errors import InvalidTask
from coditect.operations import status as standing_module
from coditect.operations.status import RefusalCounts, cluster_status
from coditect.registry.memory import MemoryRegistry
from coditect.telemetry.names import COMMITS_REFUSED
from coditect.wire.control import Verb
from dispatcher.ledger.ownership import leases, shards
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually

SHARDS = 4


class Plane:
    """Two dispatchers on one store, each with half of the shards."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.server = MemoryServer()
        self.dispatchers: list[Dispatcher] = []

    async def open(self) -> None:
        enter = self._stack.enter_async_context
        self.database, registry = await enter(MemoryDatabase()), MemoryRegistry()
        self.broker = await enter(MemoryBroker(self.server, name="person"))
        for name in ("first", "second"):
            broker, options = (
                await enter(MemoryBroker(self.server, name=name)),
                DispatcherOptions(shards=SHARDS, owner=name),
            )
            running = running_dispatcher(
                broker=broker, registry=registry, clock=SystemClock(), database=self.database, options=options
            )
            self.dispatchers.append(await enter(running))
        await eventually(lambda: [len(one.ownership.workers) for one in self.dispatchers] == [SHARDS // 2] * 2)


async def test_each_dispatcher_says_what_it_counted_and_one_without_shards_is_only_named() -> None:
    async with AsyncExitStack() as stack:
        plane = Plane(stack)
        await plane.open()
        for number, dispatcher in enumerate(plane.dispatchers):
            dispatcher.metrics.counter(COMMITS_REFUSED).value = 1 + number
        await plane.database.run(lambda tr: leases.renew(tr, "idle", 1))

        stands = await cluster_status(plane.broker)

    first, idle, second = stands.dispatchers
    assert (first.owner, first.counts) == ("first", RefusalCounts(0, 1, 0, 0, 0, 0, 0, 0))
    assert (second.owner, second.counts) == ("second", RefusalCounts(0, 2, 0, 0, 0, 0, 0, 0))
    assert (idle.owner, idle.shards, idle.counts) == ("idle", (), None)
    assert sorted(first.shards + second.shards) == list(range(SHARDS))
    assert {one.shard: one.owner for one in stands.shards} == {
        **dict.fromkeys(first.shards, "first"),
        **dict.fromkeys(second.shards, "second"),
    }


async def test_dispatcher_that_does_not_answer_is_shown_with_its_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing_module, "OWN_SECONDS", 0.1)
    async with AsyncExitStack() as stack:
        plane = Plane(stack)
        await plane.open()
        await plane.database.run(lambda tr: leases.renew(tr, "ghost", 1))

        async def takes_one() -> bool:
            """As soon as another one has given a shard away, since it shares with the ghost."""
            taken = await plane.database.run(
                lambda tr: [leases.acquire(tr, shards.lease_name(shard), "ghost") for shard in range(SHARDS)]
            )
            return any(taken)

        await eventually(takes_one)
        stands = await cluster_status(plane.broker)

    ghost = stands.dispatchers[1]
    assert (ghost.owner, ghost.counts) == ("ghost", None)
    assert ghost.shards
    assert all(one.counts is not None for one in stands.dispatchers if one.shards and one is not ghost)


async def test_shard_that_there_is_not_is_refused() -> None:
    async with AsyncExitStack() as stack:
        plane = Plane(stack)
        await plane.open()

        async with asking(plane.broker, SystemClock(), name="person") as control:
            with pytest.raises(InvalidTask):
                await control.ask(Verb.STATUS, {"shard": SHARDS})
