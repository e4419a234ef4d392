"""Later: for how long what took too long waits before it is tried again."""

from __future__ import annotations

import asyncio

from dispatcher.ledger.keyspace import TODO
from dispatcher.ledger.workflows.continuations import SetAside
from dispatcher.shards.continuations import FIRST_SECONDS, MOST_SECONDS, ContinuationBackoff
from tests.unit.broker.virtual_time import in_virtual_time

PIECE = TODO.pack((0, "w", "n", "release"))


class Spells:
    """Slow spells, and how long each made its piece wait."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self.later = ContinuationBackoff(self._over.set)

    async def come(self, piece: bytes = PIECE) -> float:
        self._over.clear()
        begin = asyncio.get_running_loop().time()
        self.later.set_aside(SetAside(piece, overdue=True))
        assert piece in self.later.aside
        await self._over.wait()
        assert piece not in self.later.aside
        return round(asyncio.get_running_loop().time() - begin)


@in_virtual_time
async def test_what_always_takes_too_long_waits_for_twice_as_long_each_time_up_to_an_hour() -> None:
    spells = Spells()

    waits = []
    for _ in range(8):
        waits.append(await spells.come())
        await asyncio.sleep(FIRST_SECONDS / 2)  # so long it tried

    assert waits == [60, 120, 240, 480, 960, 1_920, MOST_SECONDS, MOST_SECONDS]


@in_virtual_time
async def test_slow_spells_that_are_far_apart_do_not_add_up() -> None:
    spells = Spells()

    waits = []
    for _ in range(3):
        waits += [await spells.come(), await spells.come()]
        await asyncio.sleep(MOST_SECONDS + 1)

    assert waits == [60, 120] * 3


@in_virtual_time
async def test_pieces_that_are_done_are_forgotten() -> None:
    spells = Spells()
    for number in range(100):
        await spells.come(TODO.pack((0, "w", str(number), "release")))

    assert len(spells.later._last) <= MOST_SECONDS / FIRST_SECONDS + 2
