"""The loop that a dispatcher runs, on a slow store with faults, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import Lease, Pulse
from dispatcher.store.memory import Faults, MemoryDatabase
from tests.unit.broker.virtual_time import in_virtual_time

COUNT = 16
SLOW = Faults(conflict=0.05, unknown_committed=0.05, unknown_lost=0.05, latency_seconds=(0.001, 0.02))


class Dispatcher:
    def __init__(self, database: MemoryDatabase, name: str) -> None:
        self._database = database
        self._name = name
        self.owned: tuple[Lease, ...] = ()

    async def run(self) -> None:
        clock = asyncio.get_running_loop()
        pulses: Mapping[str, Pulse] = {}
        beat = 0
        while True:
            begun = clock.time()
            beat += 1
            step = await self._step(beat, pulses)
            self.owned = step.owned
            pulses = leases.look(pulses, step.beats, now_ms=int(1_000 * begun))
            await asyncio.sleep(max(begun + shards.STEP_MS / 1_000 - clock.time(), 0))

    async def _step(self, beat: int, pulses: Mapping[str, Pulse]) -> shards.ShareStep:
        return await self._database.run(
            lambda tr: shards.step(tr, self._name, beat, count=COUNT, pulses=pulses.values())
        )


@pytest.mark.parametrize("seed", range(5))
@in_virtual_time
async def test_a_killed_dispatcher_s_shards_are_worked_on_by_others_in_less_than_four_seconds(seed: int) -> None:
    clock = asyncio.get_running_loop()
    async with MemoryDatabase(faults=SLOW, seed=seed) as database, asyncio.TaskGroup() as group:
        fleet = {name: Dispatcher(database, name) for name in "abc"}
        tasks = {name: group.create_task(one.run()) for name, one in fleet.items()}
        await asyncio.sleep(5 + seed / 10)
        lost = fleet.pop("b").owned
        tasks.pop("b").cancel()
        killed = clock.time()

        while sum(len(one.owned) for one in fleet.values()) < COUNT:
            await asyncio.sleep(0.01)
            assert clock.time() < killed + 4

        assert len(lost) in {5, 6}
        assert [len(one.owned) for one in fleet.values()] == [8, 8]
        for lease in lost:
            with pytest.raises(LostLease):
                await database.run(lambda tr, lease=lease: leases.check(tr, lease))  # type: ignore[misc]
        for task in tasks.values():
            task.cancel()
