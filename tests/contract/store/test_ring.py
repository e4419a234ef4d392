"""The ring is always a ring: under concurrency, conflicts, lost answers, crashes and reopening."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from dispatcher.store.errors import StoreUnavailable, TransactionTimedOut
from dispatcher.store.keys import Space
from dispatcher.store.memory import Disk, Faults, MemoryDatabase
from dispatcher.store.port import Database
from dispatcher.store.transaction import Transaction
from tests.contract.store.ring import Ring

FAULTS = Faults(conflict=0.1, unknown_committed=0.1, unknown_lost=0.1, too_old=0.05, latency_seconds=(0.0, 0.0005))
Swap = Callable[[Transaction, int], None]


async def turn(database: Database, ring: Ring, swap: Swap, *, seed: int, swaps: int = 15, callers: int = 6) -> int:
    """Swaps at many places at once; returns how many were acknowledged before the store went away."""
    acknowledged = 0

    async def caller(seeded: random.Random) -> None:
        nonlocal acknowledged
        for _ in range(swaps):
            first = ring.any_node(seeded)
            try:
                await database.run(lambda tr: swap(tr, first))  # noqa: B023  # awaited at once
            except (StoreUnavailable, TransactionTimedOut):
                return
            acknowledged += 1

    await asyncio.gather(*(caller(random.Random(seed * 100 + number)) for number in range(callers)))
    return acknowledged


async def test_concurrent_swaps_keep_the_ring(database: Database, space: Space) -> None:
    ring = Ring(space, 9)
    await database.run(ring.lay)

    assert await turn(database, ring, ring.swap, seed=1) == 90

    assert await database.read(ring.is_whole)


@pytest.mark.parametrize("seed", range(12))
async def test_the_ring_survives_faults_and_crashes(space: Space, seed: int) -> None:
    ring, disk, seeded = Ring(space, 7), Disk(), random.Random(seed)
    async with MemoryDatabase(disk) as database:
        await database.run(ring.lay)
    repeated = 0

    for life in range(4):
        async with MemoryDatabase(disk, faults=FAULTS, seed=seed * 10 + life) as database:
            at_work = asyncio.create_task(turn(database, ring, ring.swap, seed=seed + life))
            await asyncio.sleep(seeded.random() * 0.03)
            database.crash()
            await at_work
            repeated += database.repeated
        async with MemoryDatabase(disk) as reopened:
            assert await reopened.read(ring.is_whole), f"seed {seed}, life {life}"

    assert repeated > 0


async def test_a_swap_that_skips_the_conflict_check_is_caught(space: Space) -> None:
    ring = Ring(space, 5)

    async def breaks(seed: int) -> bool:
        async with MemoryDatabase(faults=FAULTS, seed=seed) as database:
            await database.run(ring.lay)
            await turn(database, ring, ring.torn_swap, seed=seed)
            return not await database.read(ring.is_whole)

    assert [seed for seed in range(3) if await breaks(seed)]
