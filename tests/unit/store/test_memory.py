"""The faults of the in-memory store, and its conflicts."""

from __future__ import annotations

import asyncio
import random

import pytest

from dispatcher.store import errors
from dispatcher.store.memory import MOST_REMEMBERED, Disk, Faults, MemoryDatabase, View
from dispatcher.store.retry import EarlierTries, repeated
from dispatcher.store.transaction import Transaction, read_counter
from tests.unit.broker.virtual_time import in_virtual_time


async def count_after(faults: Faults, *, seed: int = 3) -> tuple[int, int]:
    """Adds 50 times without a natural key; the sum, and how often it was begun again."""
    async with MemoryDatabase(faults=faults, seed=seed) as database:
        for _ in range(50):
            await database.run(lambda tr: tr.add(b"count", 1))
        return read_counter(database.disk.values.get(b"count")), database.repeated


@pytest.mark.parametrize("faults", [Faults(conflict=0.3), Faults(unknown_lost=0.3), Faults(too_old=0.3)])
@in_virtual_time
async def test_a_fault_before_the_commit_changes_nothing(faults: Faults) -> None:
    total, repeated = await count_after(faults)

    assert total == 50
    assert repeated > 5


@in_virtual_time
async def test_a_lost_answer_shows_who_is_not_idempotent() -> None:
    total, repeated = await count_after(Faults(unknown_committed=0.3))

    assert total == 50 + repeated
    assert repeated > 5


@in_virtual_time
async def test_a_natural_key_makes_one_effect_of_lost_answers_of_both_kinds() -> None:
    faults = Faults(conflict=0.1, too_old=0.1, unknown_committed=0.2, unknown_lost=0.2)

    def add_once(tr: Transaction, number: int) -> None:
        if tr.get(b"done-%d" % number) is None:
            tr.set(b"done-%d" % number, b"")
            tr.add(b"count", 1)

    async with MemoryDatabase(faults=faults, seed=11) as database:
        for number in range(50):
            await database.run(lambda tr, number=number: add_once(tr, number))  # type: ignore[misc]

        assert read_counter(database.disk.values[b"count"]) == 50
        assert database.repeated > 20


@in_virtual_time
async def test_a_seed_repeats_its_faults() -> None:
    faults = Faults(conflict=0.2, unknown_committed=0.2, unknown_lost=0.2, latency_seconds=(0.0, 1.0))

    assert await count_after(faults, seed=5) == await count_after(faults, seed=5)
    assert await count_after(faults, seed=5) != await count_after(faults, seed=6)


@pytest.mark.parametrize(
    ("read", "written", "conflicts"),
    [
        ((b"b", b"b\0"), (b"a", b"c"), True),
        ((b"b", b"b\0"), (b"b", b"b\0"), True),
        ((b"b", b"b\0"), (b"b\0", b"c"), False),
        ((b"b", b"b\0"), (b"a", b"b"), False),
        ((b"a", b"m"), (b"l", b"z"), True),
        ((b"a", b"m"), (b"m", b"z"), False),
    ],
)
def test_only_what_was_read_and_changed_later_conflicts(
    read: tuple[bytes, bytes], written: tuple[bytes, bytes], conflicts: bool
) -> None:
    disk = Disk()
    disk.apply([("clear_range", *written)])

    if conflicts:
        with pytest.raises(errors.TransactionConflict):
            disk.check([read], 0)
    else:
        disk.check([read], 0)
    disk.check([read], 1)


@pytest.mark.parametrize(("limit", "reverse", "conflicts"), [(1, False, False), (2, False, True), (1, True, True)])
async def test_a_range_with_a_limit_conflicts_only_as_far_as_it_came(
    limit: int, reverse: bool, conflicts: bool
) -> None:
    disk = Disk()
    disk.apply([("set", key, b"") for key in (b"a", b"c")])
    view = View(disk)

    view.get_range(b"a", b"z", limit, reverse, snapshot=False)
    disk.apply([("set", b"d" if reverse else b"b", b"")])

    if conflicts:
        with pytest.raises(errors.TransactionConflict):
            disk.check(view.reads, view.version)
    else:
        disk.check(view.reads, view.version)


def test_a_snapshot_read_never_conflicts() -> None:
    disk = Disk()
    view = View(disk)

    view.get(b"a", snapshot=True)
    view.get_range(b"a", b"z", 0, False, snapshot=True)
    view.get_many([b"a", b"b"], snapshot=True)
    view.get_ranges([(b"a", b"z")], 0, snapshot=True)

    assert view.reads == []


def test_each_of_many_reads_conflicts() -> None:
    view = View(Disk())

    view.get_many([b"a", b"b"], snapshot=False)
    view.get_ranges([(b"c", b"d"), (b"e", b"f")], 0, snapshot=False)

    assert view.reads == [(b"a", b"a\0"), (b"b", b"b\0"), (b"c", b"d"), (b"e", b"f")]


async def test_two_counters_at_once_never_conflict() -> None:
    async with MemoryDatabase() as database:
        await asyncio.gather(*(database.run(lambda tr: tr.add(b"count", 1)) for _ in range(20)))

        assert (database.repeated, read_counter(database.disk.values[b"count"])) == (0, 20)


def test_a_transaction_from_before_what_is_remembered_is_too_old() -> None:
    disk = Disk()
    for _ in range(MOST_REMEMBERED + 1):
        disk.apply([("set", b"a", b"")])

    with pytest.raises(errors.TransactionTooOld):
        disk.check([(b"b", b"c")], 0)
    disk.check([(b"b", b"c")], 1)


@in_virtual_time
async def test_a_slow_way_to_the_commit_makes_a_transaction_too_old() -> None:
    async with MemoryDatabase(faults=Faults(latency_seconds=(6.0, 6.0)), run_seconds=60.0) as database:
        with pytest.raises(errors.TransactionTimedOut) as late:
            await database.run(lambda tr: tr.set(b"a", b""))

        assert isinstance(late.value.__cause__, errors.TransactionTooOld)
        assert database.disk.values == {}


@in_virtual_time
async def test_a_crash_answers_what_is_in_flight_and_keeps_what_is_committed() -> None:
    disk = Disk()
    async with MemoryDatabase(disk, faults=Faults(latency_seconds=(1.0, 1.0))) as database:
        on_its_way_back = asyncio.create_task(database.run(lambda tr: tr.set(b"back", b"")))
        await asyncio.sleep(2.0 - 0.5)
        on_its_way_there = asyncio.create_task(database.run(lambda tr: tr.set(b"there", b"")))
        await asyncio.sleep(1.0)
        database.crash()

        for call in (on_its_way_back, on_its_way_there):
            with pytest.raises(errors.StoreUnavailable):
                await call

    async with MemoryDatabase(disk) as reopened:
        assert await reopened.read(lambda tr: [key for key, _ in tr.get_range(b"", b"\xff")]) == [b"back"]


async def test_a_store_that_failed_says_so_to_the_program_and_to_every_call() -> None:
    async with MemoryDatabase() as database:
        database.fail(errors.StoreFailed("The disk is full"))

        assert isinstance(await database.failure(), errors.StoreFailed)
        with pytest.raises(errors.StoreFailed):
            await database.run(lambda tr: tr.get(b"a"))


async def test_a_timeout_of_the_function_itself_is_not_ours() -> None:
    async def attempt(_: EarlierTries) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await repeated(attempt, seconds=5.0, chance=random.Random(0))


def test_the_errors_that_run_repeats_say_that_they_may_be_retried() -> None:
    assert errors.RetriedByRun.retryable
    assert not errors.StoreFailed.retryable
    assert not errors.BeyondLimit.retryable
