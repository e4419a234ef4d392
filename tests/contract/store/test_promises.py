"""What every backend reads and writes, its atomicity, order, errors and ends."""

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
from dispatcher.store.transaction import KeyValue, Transaction, read_counter, write_counter


class Refused(Exception):
    pass


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
    for body in (lambda tr: tr.set(wrong, b""), lambda tr: tr.set(b"a", wrong), lambda tr: tr.get(wrong)):
        with pytest.raises(TypeError):
            await database.run(body)


@pytest.mark.once
async def test_what_is_no_plain_function_is_refused_and_writes_nothing(database: Database, space: Space) -> None:
    async def coroutine(tr: Transaction) -> None:
        tr.set(space.pack(("a",)), b"")

    def generator(tr: Transaction) -> Iterator[int]:
        yield 1

    for body in (coroutine, generator):
        with pytest.raises(TypeError, match="plain function"):
            await database.run(body)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await database.run(lambda tr: next(iter(())))
    assert await everything(database, space) == []


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


async def fill(database: Database, space: Space, count: int) -> list[KeyValue]:
    pairs = [(space.pack((number,)), b"%d" % number) for number in range(count)]

    def write(tr: Transaction) -> None:
        for key, value in pairs:
            tr.set(key, value)

    await database.run(write)
    return pairs


async def everything(database: Database, space: Space) -> list[KeyValue]:
    return await database.read(lambda tr: tr.get_range(*space.range()))


async def test_what_is_missing_is_none_and_an_empty_value_is_not(database: Database, space: Space) -> None:
    empty, missing = space.pack(("empty",)), space.pack(("missing",))
    await database.run(lambda tr: tr.set(empty, b""))

    assert await database.read(lambda tr: (tr.get(missing), tr.get(empty))) == (None, b"")
    assert await database.run(lambda tr: tr.get_range(empty, empty)) == []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [0, 1, 3, 100])
async def test_a_range_is_in_order_without_its_end(database: Database, space: Space, limit: int, reverse: bool) -> None:
    pairs = await fill(database, space, 10)
    begin, end = pairs[2][0], pairs[8][0]

    found = await database.run(lambda tr: tr.get_range(begin, end, limit=limit, reverse=reverse))
    seen = await database.read(lambda tr: tr.get_range(begin, end, limit=limit, reverse=reverse))

    expected = pairs[7:1:-1] if reverse else pairs[2:8]
    assert found == seen == expected[: limit or None]


async def test_a_transaction_reads_its_own_writes(database: Database, space: Space) -> None:
    pairs = await fill(database, space, 6)
    keys = [key for key, _ in pairs]

    def body(tr: Transaction) -> tuple[list[KeyValue], list[KeyValue], bytes | None]:
        tr.clear_range(keys[1], keys[4])
        tr.set(keys[2], b"new")
        tr.clear(keys[5])
        tr.add(keys[4], 0)
        own = tr.get_range(*space.range())
        return own, tr.snapshot.get_range(*space.range(), reverse=True), tr.get(keys[2])

    own, reverse, two = await database.run(body)

    assert [key for key, _ in own] == [keys[0], keys[2], keys[4]]
    assert reverse == own[::-1]
    assert two == b"new"
    assert await everything(database, space) == own


@pytest.mark.parametrize("limit", [0, 1, 2])
async def test_what_is_read_at_once_is_what_is_read_one_by_one(database: Database, space: Space, limit: int) -> None:
    pairs = await fill(database, space, 700)
    keys = [key for key, _ in pairs]
    asked = [keys[3], space.pack(("none",)), keys[699], keys[3], keys[5], keys[6], space.pack(("new",)), *keys]
    ranges = [(key, key + b"\xff") for key in (keys[0], keys[5], space.prefix, keys[0])]
    ranges += [(keys[number], keys[number + 2]) for number in range(100)]

    def body(tr: Transaction) -> None:
        tr.clear(keys[5])
        tr.set(keys[6], b"")
        tr.set(space.pack(("new",)), b"1")
        for reads in (tr, tr.snapshot):
            assert reads.get_many(asked) == [reads.get(key) for key in asked]
            assert reads.get_ranges(ranges, limit=limit) == [reads.get_range(*one, limit=limit) for one in ranges]
            assert not reads.get_many([])
            assert not reads.get_ranges([])

    await database.run(body)
    values = await database.read(lambda tr: tr.get_many(asked[:7]))
    found = await database.read(lambda tr: tr.get_ranges([(keys[4], keys[7])], limit=limit))

    assert values == [b"3", None, b"699", b"3", None, b"", b"1"]
    assert found == [[(keys[4], b"4"), (keys[6], b"")][: limit or None]]


@pytest.mark.parametrize("limit", [0, 2])
async def test_what_was_read_ahead_has_what_was_written_since(database: Database, space: Space, limit: int) -> None:
    pairs = await fill(database, space, 6)
    keys, missing = [key for key, _ in pairs], space.pack(("missing",))

    def body(tr: Transaction) -> tuple[list[bytes | None], list[KeyValue]]:
        tr.set(keys[0], b"before")
        tr.read_ahead([*keys, missing], [space.range()], limit=limit)
        tr.set(keys[1], b"after")
        tr.clear(keys[2])
        tr.clear_range(keys[3], keys[4])
        tr.add(missing, 1)
        return [tr.get(key) for key in (*keys, missing)], tr.get_range(*space.range())

    values, found = await database.run(body)

    assert values == [b"before", b"after", None, None, b"4", b"5", write_counter(1)]
    assert dict(found) == {key: value for key, value in zip((*keys, missing), values, strict=True) if value is not None}


@pytest.mark.parametrize("ahead", [0, 2, 6, 7])
async def test_range_that_was_read_ahead_is_read_as_any(database: Database, space: Space, ahead: int) -> None:
    pairs = await fill(database, space, 6)
    asked = [(limit, reverse) for limit in (0, 1, 2, 3, 6, 9) for reverse in (False, True)]

    part = (pairs[0][0], pairs[2][0])

    def body(tr: Transaction) -> tuple[list[list[KeyValue]], list[list[list[KeyValue]]]]:
        tr.read_ahead((), [space.range(), (part[0], pairs[5][0])], limit=ahead)
        found = [tr.get_range(*space.range(), limit=limit, reverse=reverse) for limit, reverse in asked]
        return found, [tr.get_ranges([space.range(), part], limit=limit) for limit, _ in asked]

    found, several = await database.run(body)

    assert found == [(pairs[::-1] if reverse else pairs)[: limit or None] for limit, reverse in asked]
    assert several == [[pairs[: limit or None], pairs[:2][: limit or None]] for limit, _ in asked]


async def test_a_counter_begins_at_zero_and_wraps_around(database: Database, space: Space) -> None:
    new, wrapping, longer, shorter = (space.pack((name,)) for name in ("new", "wrapping", "longer", "shorter"))

    def body(tr: Transaction) -> None:
        tr.set(wrapping, write_counter(2**63 - 1))
        tr.add(wrapping, 1)
        tr.set(longer, b"\x01" + bytes(7) + b"rest")
        tr.add(longer, 1)
        tr.set(shorter, b"\xff")
        tr.add(shorter, 1)

    await database.run(body)
    for amount in (5, -7, 1):
        await database.run(lambda tr, amount=amount: tr.add(new, amount))  # type: ignore[misc]
    found = await database.read(lambda tr: [tr.get(key) for key in (new, wrapping, longer, shorter)])
    assert found == [write_counter(-1), write_counter(-(2**63)), write_counter(2), write_counter(256)]
    assert read_counter(found[0]) == -1


async def test_the_read_version_grows_with_commits_only(database: Database, space: Space) -> None:
    async def version() -> int:
        return await database.run(lambda tr: tr.get_read_version())

    before = await version()
    await database.run(lambda tr: tr.set(space.pack(("a",)), b""))
    after = await version()

    assert after > before
    assert await database.read(lambda tr: tr.get_read_version()) >= after
