"""The ring is always a ring: under concurrency, conflicts, lost answers, crashes and reopening."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from chaos.simulated_store import Disk, Faults, SimulatedDatabase
from dispatcher.store.errors import StoreUnavailable, TransactionTimedOut
from dispatcher.store.keys import Space
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads, Transaction, read_counter, write_counter


class Ring:
    def __init__(self, space: Space, size: int) -> None:
        self._space = space
        self._size = size

    def lay(self, tr: Transaction) -> None:
        for number in range(self._size):
            tr.set(self._space.pack((number,)), write_counter((number + 1) % self._size))

    def swap(self, tr: Transaction, first: int) -> None:
        second = self._next(tr, first)
        third = self._next(tr, second)
        fourth = self._next(tr, third)
        for number, following in ((first, third), (third, second), (second, fourth)):
            tr.set(self._space.pack((number,)), write_counter(following))

    def torn_swap(self, tr: Transaction, first: int) -> None:
        """A planted bug: reads by snapshot, so it does not see that another swap came in between."""
        second = self._next(tr.snapshot, first)
        third = self._next(tr.snapshot, second)
        fourth = self._next(tr.snapshot, third)
        for number, following in ((first, third), (third, second), (second, fourth)):
            tr.set(self._space.pack((number,)), write_counter(following))

    def is_whole(self, tr: Reads) -> bool:
        """Whether every node is passed once before the walk comes back."""
        seen, number = set(), 0
        while number not in seen:
            seen.add(number)
            number = self._next(tr, number)
        return number == 0 and len(seen) == self._size == len(tr.get_range(*self._space.range()))

    def any_node(self, seeded: random.Random) -> int:
        return seeded.randrange(self._size)

    def _next(self, tr: Reads, number: int) -> int:
        return read_counter(tr.get(self._space.pack((number,))))


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
    async with SimulatedDatabase(disk) as database:
        await database.run(ring.lay)
    repeated = 0

    for life in range(4):
        async with SimulatedDatabase(disk, faults=FAULTS, seed=seed * 10 + life) as database:
            at_work = asyncio.create_task(turn(database, ring, ring.swap, seed=seed + life))
            await asyncio.sleep(seeded.random() * 0.03)
            database.crash()
            await at_work
            repeated += database.repeated
        async with SimulatedDatabase(disk) as reopened:
            assert await reopened.read(ring.is_whole), f"seed {seed}, life {life}"

    assert repeated > 0


async def test_a_swap_that_skips_the_conflict_check_is_caught(space: Space) -> None:
    ring = Ring(space, 5)

    async def breaks(seed: int) -> bool:
        async with SimulatedDatabase(faults=FAULTS, seed=seed) as database:
            await database.run(ring.lay)
            await turn(database, ring, ring.torn_swap, seed=seed)
            return not await database.read(ring.is_whole)

    assert [seed for seed in range(3) if await breaks(seed)]
