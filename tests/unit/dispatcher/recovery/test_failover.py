"""The former owners of a shard are evicted at the broker, once each, beside the take-over."""

from __future__ import annotations

import asyncio

from coditect.aio.supervisor import Supervisor
from dispatcher.ledger.ownership import leases
from dispatcher.recovery.failover import Predecessors
from dispatcher.store.memory import MemoryDatabase
from tests.unit.broker.virtual_time import in_virtual_time


class Counting:
    def __init__(self, *, closes: int = 2) -> None:
        self.asked: list[str] = []
        self._closes = closes

    async def evict(self, process: str) -> int:
        self.asked.append(process)
        await asyncio.sleep(1)
        return self._closes

    async def queues(self) -> frozenset[str]:
        return frozenset()

    async def messages(self, queue: str) -> int | None:
        return None


@in_virtual_time
async def test_former_owner_of_many_shards_is_evicted_once_and_nobody_waits_for_it() -> None:
    evict = Counting()
    async with Supervisor() as background, MemoryDatabase() as database:
        predecessors = Predecessors(evict, background, database)
        began = asyncio.get_running_loop().time()
        for owner in ("ada", "ada", "bob", "ada"):
            await predecessors.evict(owner)

        assert asyncio.get_running_loop().time() == began
        await asyncio.sleep(10)

    assert evict.asked == ["ada", "bob"]


@in_virtual_time
async def test_former_owner_that_is_back_is_not_looked_for_again_until_it_is_lost_again() -> None:
    evict = Counting(closes=0)
    async with Supervisor() as background, MemoryDatabase() as database:
        predecessors = Predecessors(evict, background, database)
        await predecessors.evict("ada")
        await database.run(lambda tr: leases.renew(tr, "ada", 7))
        await asyncio.sleep(20)
        assert evict.asked == ["ada"]

        await database.run(lambda tr: leases.leave(tr, "ada"))
        await predecessors.evict("ada")
        await asyncio.sleep(20)

    assert evict.asked == ["ada"] * 3
