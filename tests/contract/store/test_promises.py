"""Atomicity, order, errors and ends, alike in every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dispatcher.store.errors import (
    BeyondLimit,
    InvertedRange,
    KeyOutsideRange,
    KeyTooLarge,
    StoreUnavailable,
    TransactionTooLarge,
    TransactionTooOld,
    ValueTooLarge,
)
from dispatcher.store.keys import Space
from dispatcher.store.limits import KEY_BYTES, TRANSACTION_BYTES, VALUE_BYTES
from dispatcher.store.port import Database, TransactionFunction
from dispatcher.store.transaction import Transaction, read_counter, write_counter
from tests.contract.store.test_reads_and_writes import everything


class Refused(Exception):
    pass


async def test_a_body_that_raises_writes_nothing(database: Database, space: Space) -> None:
    def body(tr: Transaction) -> None:
        tr.set(space.pack(("a",)), b"")
        raise Refused

    with pytest.raises(Refused):
        await database.run(body)

    assert await everything(database, space) == []


async def test_a_body_that_raises_does_not_touch_its_neighbours(database: Database, space: Space) -> None:
    def body(tr: Transaction, number: int) -> int:
        tr.set(space.pack((number,)), b"")
        tr.add(space.pack(("count",)), 1)
        if number % 3 == 0:
            raise Refused
        return number

    answers = await asyncio.gather(
        *(database.run(lambda tr, number=number: body(tr, number)) for number in range(30)),  # type: ignore[misc]
        return_exceptions=True,
    )

    kept = [number for number in range(30) if number % 3]
    assert [one for one in answers if isinstance(one, int)] == kept
    assert all(isinstance(one, int | Refused) for one in answers)
    pairs = await everything(database, space)
    assert [key for key, _ in pairs][1:] == [space.pack((number,)) for number in kept]
    assert read_counter(pairs[0][1]) == len(kept)


@pytest.mark.parametrize("ahead", [False, True])
async def test_concurrent_read_modify_writes_are_all_counted(database: Database, space: Space, ahead: bool) -> None:
    key = space.pack(("count",))

    def body(tr: Transaction) -> None:
        if ahead:
            tr.read_ahead([key], [space.range()])
        tr.set(key, write_counter(read_counter(tr.get(key)) + 1))

    await asyncio.gather(*(database.run(body) for _ in range(25)))

    assert read_counter(await database.read(lambda tr: tr.get(key))) == 25


async def test_a_reader_sees_a_transaction_whole_or_not_at_all(database: Database, space: Space) -> None:
    left, right = space.pack(("left",)), space.pack(("right",))

    def move(tr: Transaction) -> None:
        tr.add(left, -1)
        tr.add(right, 1)

    async def look() -> int:
        return await database.read(lambda tr: read_counter(tr.get(left)) + read_counter(tr.get(right)))

    answers = await asyncio.gather(*(look() if number % 2 else database.run(move) for number in range(60)))

    assert {one for one in answers if one is not None} == {0}


def _too_much(tr: Transaction) -> None:
    for number in range(TRANSACTION_BYTES // VALUE_BYTES + 1):
        tr.set(b"%d" % number, bytes(VALUE_BYTES))


def _swallowed(tr: Transaction) -> None:
    try:
        _too_much(tr)
    except TransactionTooLarge:
        return


LONG = b"k" * (KEY_BYTES + 1)
REFUSED: list[tuple[TransactionFunction[object], type[BeyondLimit]]] = [
    (lambda tr: tr.set(LONG, b""), KeyTooLarge),
    (lambda tr: tr.get(LONG), KeyTooLarge),
    (lambda tr: tr.snapshot.get(LONG), KeyTooLarge),
    (lambda tr: tr.clear(LONG), KeyTooLarge),
    (lambda tr: tr.add(LONG, 1), KeyTooLarge),
    (lambda tr: tr.get_range(b"", LONG), KeyTooLarge),
    (lambda tr: tr.clear_range(LONG, b"l"), KeyTooLarge),
    (lambda tr: tr.set(b"k", bytes(VALUE_BYTES + 1)), ValueTooLarge),
    (lambda tr: tr.set(b"\xff", b""), KeyOutsideRange),
    (lambda tr: tr.get(b"\xff\x01"), KeyOutsideRange),
    (lambda tr: tr.get_range(b"b", b"a"), InvertedRange),
    (lambda tr: tr.get_many([b"k", LONG]), KeyTooLarge),
    (lambda tr: tr.snapshot.get_many([b"k", LONG]), KeyTooLarge),
    (lambda tr: tr.get_many([b"k", b"\xff\x01"]), KeyOutsideRange),
    (lambda tr: tr.get_ranges([(b"a", b"b"), (b"b", b"a")]), InvertedRange),
    (lambda tr: tr.clear_range(b"b", b"a"), InvertedRange),
    (_too_much, TransactionTooLarge),
    (_swallowed, TransactionTooLarge),
]


@pytest.mark.once
@pytest.mark.parametrize(("body", "error"), REFUSED)
async def test_what_is_beyond_a_limit_is_refused_and_not_repeated(
    database: Database, space: Space, body: TransactionFunction[object], error: type[BeyondLimit]
) -> None:
    runs = 0

    def counted(tr: Transaction) -> None:
        nonlocal runs
        runs += 1
        tr.set(space.pack(("beside",)), b"")
        body(tr)

    with pytest.raises(error) as refused:
        await database.run(counted)

    assert not refused.value.retryable
    assert runs == 1
    assert await everything(database, space) == []


async def test_what_is_just_within_the_limits_is_taken(database: Database, space: Space) -> None:
    key = space.pack(("k",))
    key += b"k" * (KEY_BYTES - len(key))

    await database.run(lambda tr: tr.set(key, bytes(VALUE_BYTES)))

    assert await database.read(lambda tr: tr.get(key)) == bytes(VALUE_BYTES)


@pytest.mark.once
async def test_a_transaction_that_got_too_old_is_repeated(database: Database, space: Space) -> None:
    runs: list[Transaction] = []

    def body(tr: Transaction) -> tuple[int, int]:
        tr.add(space.pack(("count",)), 1)
        runs.append(tr)
        if len(runs) == 1:
            tr._until = 0.0  # more than half of the time that it may take is over
            raise TransactionTooOld("as if 5 s had passed")
        return tr.earlier.count, tr.earlier.slow

    assert await database.run(body) == (1, 1)
    assert len(runs) == 2
    assert read_counter(await database.read(lambda tr: tr.get(space.pack(("count",))))) == 1


@pytest.mark.parametrize("wrong", ["text", 1, None, bytearray(b"a")])
async def test_only_bytes_are_taken(database: Database, wrong: object) -> None:
    for body in (
        lambda tr: tr.set(wrong, b""),
        lambda tr: tr.set(b"a", wrong),
        lambda tr: tr.get(wrong),
    ):
        with pytest.raises(TypeError):
            await database.run(body)


@pytest.mark.once
async def test_a_coroutine_function_is_refused_and_writes_nothing(database: Database, space: Space) -> None:
    async def coroutine(tr: Transaction) -> None:
        tr.set(space.pack(("a",)), b"")

    def generator(tr: Transaction) -> Iterator[int]:
        yield 1

    for body in (coroutine, generator):
        with pytest.raises(TypeError, match="plain function"):
            await database.run(body)
    assert await everything(database, space) == []


@pytest.mark.once
async def test_stop_iteration_reaches_the_caller_as_another_error(database: Database) -> None:
    def body(tr: Transaction) -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await database.run(body)


@pytest.mark.once
async def test_a_transaction_ends_with_its_function(database: Database, space: Space) -> None:
    kept = await database.run(lambda tr: tr)

    with pytest.raises(RuntimeError, match="has ended"):
        kept.get(space.pack(("a",)))
    with pytest.raises(RuntimeError, match="has ended"):
        kept.set(space.pack(("a",)), b"")


async def test_a_closed_store_is_unavailable(database: Database) -> None:
    await database.__aexit__(None, None, None)
    try:
        with pytest.raises(StoreUnavailable):
            await database.run(lambda tr: tr.get(b"a"))
        with pytest.raises(StoreUnavailable):
            await database.read(lambda tr: tr.get(b"a"))
    finally:
        await database.__aenter__()


async def test_failure_waits_while_the_store_works(database: Database) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(database.failure(), 0.01)
