"""Leases and shards on real databases, with everybody at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from chaos.simulated_store import Faults, SimulatedDatabase
from dispatcher.ledger import outbox
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import TTL_MS, Lease, Pulse
from dispatcher.store.fdb import FdbDatabase
from dispatcher.store.port import Database
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import Transaction, read_counter
from tests.fdb_stub import FdbStub

FAULTS = Faults(conflict=0.05, unknown_committed=0.1, unknown_lost=0.1)
MAKERS: dict[str, Callable[[Path], Database]] = {
    "simulated with faults": lambda folder: SimulatedDatabase(faults=FAULTS, seed=5),
    "sqlite": lambda folder: SqliteDatabase(folder / "store.db"),
    "fdb-stub": lambda folder: FdbDatabase(binding=FdbStub()),
}
COUNT = 12
NAME = ("leader", "sweep")


@pytest.fixture(params=MAKERS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with MAKERS[request.param](tmp_path) as opened:
        yield opened


async def step(database: Database, name: str, beat: int, *pulses: Pulse) -> shards.ShareStep:
    return await database.run(lambda tr: shards.step(tr, name, beat, count=COUNT, pulses=pulses))


async def test_dispatchers_that_start_together_share_fairly(database: Database) -> None:
    names = "abcde"
    for beat in range(1, 5):
        steps = await asyncio.gather(*(step(database, name, beat) for name in names))

    owned = [lease.name for one in steps for lease in one.owned]
    assert sorted(owned) == [shards.lease_name(shard) for shard in range(COUNT)]
    assert sorted(len(one.owned) for one in steps) == [2, 2, 2, 3, 3]


async def test_survivors_that_see_a_death_at_once_take_over_once(database: Database) -> None:
    for beat in range(1, 5):
        await asyncio.gather(*(step(database, name, beat) for name in "abc"))
    lost = (await step(database, "c", 5)).owned

    dead = Pulse("c", 5, TTL_MS, 0)
    await asyncio.gather(*(step(database, name, 5, dead) for name in "ab"))
    after = await asyncio.gather(*(step(database, name, 6, dead) for name in "ab"))

    assert [len(one.owned) for one in after] == [6, 6]
    taken = {lease.name: lease for one in after for lease in one.owned}
    assert all(taken[lease.name].epoch == lease.epoch + 1 and taken[lease.name].previous == "c" for lease in lost)
    for lease in lost:
        with pytest.raises(LostLease):
            await database.run(lambda tr, lease=lease: leases.check(tr, lease))  # type: ignore[misc]


async def test_a_lease_that_goes_from_hand_to_hand_guards_what_is_counted_under_it(database: Database) -> None:
    """Each owner reads, adds and writes under its lease: work counted twice, or by a former owner, would show."""
    done: Counter[int] = Counter()

    def begin(tr: Transaction, owner: str) -> Lease | None:
        leases.renew(tr, owner, 1)
        return leases.acquire(tr, NAME, owner)

    def work(tr: Transaction, lease: Lease, turn: int) -> None:
        leases.check(tr, lease)
        key = b"turn %s %d" % (lease.owner.encode(), turn)
        if tr.get(key) is None:
            tr.set(key, b"")
            tr.add(b"sum", 1)
            tr.set(b"epoch %d" % lease.epoch, lease.owner.encode())

    async def live(owner: str) -> None:
        while (lease := await database.run(lambda tr: begin(tr, owner))) is None:
            await asyncio.sleep(0.001)
        for turn in range(3):
            await database.run(lambda tr, turn=turn: work(tr, lease, turn))  # type: ignore[misc]
            done[lease.epoch] += 1
        await database.run(lambda tr: leases.release(tr, lease))
        with pytest.raises(LostLease):
            await database.run(lambda tr: work(tr, lease, 99))

    await asyncio.gather(*(live(f"owner-{number}") for number in range(6)))

    assert done == dict.fromkeys(range(1, 7), 3)
    assert await database.read(lambda tr: read_counter(tr.get(b"sum"))) == 18


async def test_publications_at_once_have_numbers_of_their_own(database: Database) -> None:
    def put(tr: Transaction, node: int) -> int:
        key = b"publication %d" % node
        if (given := tr.get(key)) is not None:
            return int(given)
        number = outbox.numbers(tr, 0).last + 1
        outbox.record(tr, 0, outbox.Numbers(number))
        tr.set(key, b"%d" % number)
        return number

    async def publish(node: int) -> int:
        return await database.run(lambda tr: put(tr, node))

    numbers = await asyncio.gather(*(publish(node) for node in range(12)))

    assert sorted(numbers) == list(range(1, 13))
    assert await database.read(lambda tr: outbox.numbers(tr, 0)) == outbox.Numbers(12)
