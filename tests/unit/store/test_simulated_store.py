"""Keys, limits of transactions, and the faults and conflicts of the simulated store."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulated_store import MAX_REMEMBERED_COMMITS, Disk, Faults, SimulatedDatabase, View
from dispatcher.store import errors
from dispatcher.store.errors import TransactionTooLarge, TransactionTooOld
from dispatcher.store.fdb import load_binding
from dispatcher.store.keys import Element, Space
from dispatcher.store.limits import KEY_BYTES, TRANSACTION_BYTES, TRANSACTION_SECONDS
from dispatcher.store.overlay import Overlay
from dispatcher.store.retry import EarlierTries, repeated
from dispatcher.store.transaction import Transaction, call, read_counter
from tests.unit.broker.virtual_time import in_virtual_time


async def count_after(faults: Faults, *, seed: int = 3) -> tuple[int, int]:
    """Adds 50 times without a natural key; the sum, and how often it was begun again."""
    async with SimulatedDatabase(faults=faults, seed=seed) as database:
        for _ in range(50):
            await database.run(lambda tr: tr.add(b"count", 1))
        return read_counter(database.disk.values.get(b"count")), database.repeated


@pytest.mark.parametrize(
    ("faults", "again"),
    [
        (Faults(conflict=0.3), False),
        (Faults(unknown_lost=0.3), False),
        (Faults(too_old=0.3), False),
        (Faults(unknown_committed=0.3), True),
    ],
)
@in_virtual_time
async def test_a_fault_before_the_commit_changes_nothing_and_one_behind_it_does(faults: Faults, again: bool) -> None:
    total, repeated = await count_after(faults)

    assert total == 50 + repeated * again
    assert repeated > 5


@in_virtual_time
async def test_a_seed_repeats_its_faults() -> None:
    faults = Faults(conflict=0.2, unknown_committed=0.2, unknown_lost=0.2, latency_seconds=(0.0, 1.0))

    assert await count_after(faults, seed=5) == await count_after(faults, seed=5)
    assert await count_after(faults, seed=5) != await count_after(faults, seed=6)


def is_refused(disk: Disk, reads: list[tuple[bytes, bytes]], version: int) -> bool:
    try:
        disk.check(reads, version)
    except errors.TransactionConflict:
        return True
    return False


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
def test_read_and_changed_conflicts(read: tuple[bytes, bytes], written: tuple[bytes, bytes], conflicts: bool) -> None:
    disk = Disk()
    disk.apply([("clear_range", *written)])

    assert is_refused(disk, [read], 0) is conflicts
    assert not is_refused(disk, [read], 1)


@pytest.mark.parametrize(("limit", "reverse", "conflicts"), [(1, False, False), (2, False, True), (1, True, True)])
async def test_a_limited_range_conflicts_as_far_as_it_came(limit: int, reverse: bool, conflicts: bool) -> None:
    disk = Disk()
    disk.apply([("set", key, b"") for key in (b"a", b"c")])
    view = View(disk)

    view.get_range(b"a", b"z", limit, reverse, snapshot=False)
    disk.apply([("set", b"d" if reverse else b"b", b"")])

    assert is_refused(disk, view.reads, view.version) is conflicts


def test_each_of_many_reads_conflicts_and_a_snapshot_read_never() -> None:
    view = View(Disk())
    view.get(b"a", snapshot=True)
    view.get_range(b"a", b"z", 0, False, snapshot=True)
    view.get_many([b"a", b"b"], snapshot=True)
    view.get_ranges([(b"a", b"z")], 0, snapshot=True)
    assert view.reads == []
    view.get_many([b"a", b"b"], snapshot=False)
    view.get_ranges([(b"c", b"d"), (b"e", b"f")], 0, snapshot=False)
    assert view.reads == [(b"a", b"a\0"), (b"b", b"b\0"), (b"c", b"d"), (b"e", b"f")]


async def test_two_counters_at_once_never_conflict() -> None:
    async with SimulatedDatabase() as database:
        await asyncio.gather(*(database.run(lambda tr: tr.add(b"count", 1)) for _ in range(20)))

        assert (database.repeated, read_counter(database.disk.values[b"count"])) == (0, 20)


def test_a_transaction_from_before_what_is_remembered_is_too_old() -> None:
    disk = Disk()
    for _ in range(MAX_REMEMBERED_COMMITS + 1):
        disk.apply([("set", b"a", b"")])

    with pytest.raises(errors.TransactionTooOld):
        disk.check([(b"b", b"c")], 0)
    disk.check([(b"b", b"c")], 1)


@in_virtual_time
async def test_a_slow_way_to_the_commit_makes_a_transaction_too_old() -> None:
    async with SimulatedDatabase(faults=Faults(latency_seconds=(6.0, 6.0)), run_seconds=60.0) as database:
        with pytest.raises(errors.TransactionTimedOut) as late:
            await database.run(lambda tr: tr.set(b"a", b""))

        assert isinstance(late.value.__cause__, errors.TransactionTooOld)
        assert database.disk.values == {}


@in_virtual_time
async def test_a_crash_answers_what_is_in_flight_and_keeps_what_is_committed() -> None:
    disk = Disk()
    async with SimulatedDatabase(disk, faults=Faults(latency_seconds=(1.0, 1.0))) as database:
        on_its_way_back = asyncio.create_task(database.run(lambda tr: tr.set(b"back", b"")))
        await asyncio.sleep(2.0 - 0.5)
        on_its_way_there = asyncio.create_task(database.run(lambda tr: tr.set(b"there", b"")))
        await asyncio.sleep(1.0)
        database.crash()

        for call in (on_its_way_back, on_its_way_there):
            with pytest.raises(errors.StoreUnavailable):
                await call

    async with SimulatedDatabase(disk) as reopened:
        assert await reopened.read(lambda tr: [key for key, _ in tr.get_range(b"", b"\xff")]) == [b"back"]


async def test_a_store_that_failed_says_so_to_the_program_and_to_every_call() -> None:
    async with SimulatedDatabase() as database:
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


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("late", [False, True])
def test_a_transaction_may_be_open_for_five_seconds(late: bool) -> None:
    clock = Clock()
    tr = Transaction(View(Disk()), now=clock)
    clock.now += TRANSACTION_SECONDS + 0.001 * late

    reads: list[Callable[[], object]] = [
        lambda: tr.get(b"a"),
        lambda: tr.snapshot.get(b"a"),
        lambda: tr.get_range(b"a", b"b"),
        lambda: tr.get_many([b"a"]),
        lambda: tr.get_ranges([(b"a", b"b")]),
        tr.get_read_version,
        tr.snapshot.get_read_version,
    ]
    for read in reads:
        if late:
            with pytest.raises(TransactionTooOld):
                read()
        else:
            read()


def test_a_function_that_only_writes_becomes_too_old_as_well() -> None:
    clock = Clock()

    def body(tr: Transaction) -> None:
        tr.set(b"a", b"")
        clock.now += TRANSACTION_SECONDS + 1

    with pytest.raises(TransactionTooOld):
        call(body, Transaction(View(Disk()), now=clock))


def test_what_may_conflict_counts_and_a_snapshot_read_does_not() -> None:
    tr = Transaction(View(Disk()))

    tr.snapshot.get(b"a" * KEY_BYTES)
    tr.snapshot.get_range(b"a", b"b")
    tr.snapshot.get_many([b"a" * KEY_BYTES])
    tr.snapshot.get_ranges([(b"a", b"b")])
    assert tr.size_bytes == 0
    tr.get(b"a" * KEY_BYTES)
    one = tr.size_bytes
    assert one > 2 * KEY_BYTES
    tr.get_many([b"a" * KEY_BYTES, b"b" * KEY_BYTES])
    assert tr.size_bytes == 3 * one
    tr.get_ranges([(b"a" * KEY_BYTES, b"b" * KEY_BYTES)])
    assert tr.size_bytes == 4 * one


def test_reading_too_many_keys_makes_a_transaction_too_large() -> None:
    tr = Transaction(View(Disk()))

    with pytest.raises(TransactionTooLarge) as refused:
        for _ in range(TRANSACTION_BYTES // KEY_BYTES):
            tr.get(b"a" * KEY_BYTES)

    assert refused.value.facts["limit_bytes"] == TRANSACTION_BYTES


KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
PUTS = st.lists(st.tuples(KEYS, st.none() | st.sampled_from([b"1", b"2"])), max_size=8)


def _cluster_status(pairs: dict[bytes, bytes], puts: list[tuple[bytes, bytes | None]]) -> dict[bytes, bytes]:
    merged: dict[bytes, bytes | None] = {**pairs, **dict(puts)}
    return {key: value for key, value in merged.items() if value is not None}


@given(
    pairs=st.dictionaries(KEYS, st.just(b"0")),
    puts=PUTS,
    ends=st.tuples(KEYS, KEYS),
    limit=st.integers(0, 3),
    reverse=st.booleans(),
)
def test_a_range_is_what_stands_over_the_pairs_below(
    pairs: dict[bytes, bytes],
    puts: list[tuple[bytes, bytes | None]],
    ends: tuple[bytes, bytes],
    limit: int,
    reverse: bool,
) -> None:
    begin, end = sorted(ends)
    overlay = Overlay()
    for key, value in puts:
        overlay.put(key, value)
    keys = overlay.between(begin, end)
    below = sorted(((key, value) for key, value in pairs.items() if begin <= key < end), reverse=reverse)
    most = limit + overlay.removed(keys) if limit else None

    found = overlay.over(below[:most], keys, limit=limit, reverse=reverse)

    expected = [(key, value) for key, value in _cluster_status(pairs, puts).items() if begin <= key < end]
    assert found == sorted(expected, reverse=reverse)[: limit or None]


@given(kept=PUTS, undone=PUTS)
def test_undone_was_never_put(kept: list[tuple[bytes, bytes | None]], undone: list[tuple[bytes, bytes | None]]) -> None:
    overlay, alike = Overlay(), Overlay()
    for key, value in kept:
        overlay.put(key, value)
        alike.put(key, value)
    overlay.keep()
    for key, value in undone:
        overlay.put(key, value)
    assert overlay.changed == bool(undone)

    overlay.undo()

    assert overlay.values == alike.values
    assert overlay.between(b"", b"z") == alike.between(b"", b"z")
    assert not overlay.changed


load_binding()  # takes out its import hook again, which an import by another would leave
Subspace = importlib.import_module("fdb.subspace_impl").Subspace

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(["", "\0", "a\0\0b", "\0\xff"])
INTEGERS = st.integers(0, 2**64 - 2) | st.sampled_from([0, 1, 255, 256, 2**16, 2**63, 2**64 - 2])
ELEMENTS: st.SearchStrategy[Element] = st.binary() | TEXT | INTEGERS
TUPLES = st.lists(ELEMENTS, max_size=5).map(tuple)


@given(TUPLES, TUPLES)
def test_keys_are_those_of_foundationdb(outer: tuple[Any, ...], inner: tuple[Any, ...]) -> None:
    ours, theirs = Space(outer), Subspace(outer)

    assert ours.prefix == theirs.key()
    assert ours.pack(inner) == theirs.pack(inner)
    assert ours.range(inner) == (theirs.range(inner).start, theirs.range(inner).stop)
    assert ours.unpack(ours.pack(inner)) == theirs.unpack(theirs.pack(inner))
    assert ours.contains(ours.pack(inner))


@given(st.lists(ELEMENTS, min_size=1, max_size=4))
def test_spaces_within_spaces_are_those_of_foundationdb(path: list[Any]) -> None:
    ours, theirs = Space(("root",)), Subspace(("root",))
    for name in path:
        ours, theirs = ours[name], theirs[name]

    assert ours.prefix == theirs.key()


@given(st.lists(st.tuples(TEXT, INTEGERS), min_size=2, max_size=8))
def test_keys_sort_as_their_tuples(tuples: list[tuple[str, int]]) -> None:
    space = Space(("s",))

    assert [space.unpack(key) for key in sorted(map(space.pack, tuples))] == sorted(
        tuples, key=lambda one: (one[0].encode(), one[1])
    )


def test_a_key_of_another_space_and_what_no_key_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="another space"):
        Space(("a",)).unpack(Space(("b",)).pack((1,)))
    nothing: list[Element] = [{}, None, True, 1.5, -1, 2**64 - 1]
    for element in nothing:
        with pytest.raises(ValueError, match="Unsupported"):
            Space().pack((element,))


@given(st.binary(max_size=40))
def test_bytes_that_are_no_key_are_refused(written: bytes) -> None:
    try:
        elements = Space().unpack(written)
    except ValueError:
        return
    assert Space().unpack(Space().pack(elements)) == elements


def test_a_page_begins_behind_the_last_key_of_the_page_before() -> None:
    space = Space(("nodes",))
    keys = [space.pack((workflow, node)) for workflow in ("v", "w", "x") for node in ("a", "a\0", "b", "bb")]

    def page(*after: str) -> list[tuple[Element, ...]]:
        begin, end = space.behind(("w",), after)
        return [space.unpack(key) for key in keys if begin <= key < end]

    assert page() == page("") == [("w", "a"), ("w", "a\0"), ("w", "b"), ("w", "bb")]
    assert page("a") == [("w", "a\0"), ("w", "b"), ("w", "bb")]
    assert page("b") == [("w", "bb")]
    assert page("bb") == []
