"""What a transaction reads and writes, alike in every backend."""

from __future__ import annotations

import pytest

from dispatcher.store.keys import Space
from dispatcher.store.port import Database
from dispatcher.store.transaction import KeyValue, Transaction, read_counter, write_counter


async def fill(database: Database, space: Space, count: int) -> list[KeyValue]:
    pairs = [(space.pack((number,)), b"%d" % number) for number in range(count)]

    def write(tr: Transaction) -> None:
        for key, value in pairs:
            tr.set(key, value)

    await database.run(write)
    return pairs


async def everything(database: Database, space: Space) -> list[KeyValue]:
    return await database.read(lambda tr: tr.get_range(*space.range()))


async def test_what_was_committed_is_read_by_the_next(database: Database, space: Space) -> None:
    key = space.pack(("a",))

    def body(tr: Transaction) -> str:
        tr.set(key, b"1")
        return "value"

    returned = await database.run(body)

    assert returned == "value"
    assert await database.run(lambda tr: tr.get(key)) == b"1"
    assert await database.read(lambda tr: tr.get(key)) == b"1"


async def test_a_missing_key_is_none_and_an_empty_value_is_not(database: Database, space: Space) -> None:
    await database.run(lambda tr: tr.set(space.pack(("empty",)), b""))

    assert await database.read(lambda tr: tr.get(space.pack(("missing",)))) is None
    assert await database.read(lambda tr: tr.get(space.pack(("empty",)))) == b""


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [0, 1, 3, 100])
async def test_a_range_is_in_order_without_its_end(database: Database, space: Space, limit: int, reverse: bool) -> None:
    pairs = await fill(database, space, 10)
    begin, end = pairs[2][0], pairs[8][0]

    found = await database.run(lambda tr: tr.get_range(begin, end, limit=limit, reverse=reverse))
    seen = await database.read(lambda tr: tr.get_range(begin, end, limit=limit, reverse=reverse))

    expected = pairs[7:1:-1] if reverse else pairs[2:8]
    assert found == seen == expected[: limit or None]


async def test_a_range_that_begins_where_it_ends_is_empty(database: Database, space: Space) -> None:
    pairs = await fill(database, space, 1)

    assert await database.run(lambda tr: tr.get_range(pairs[0][0], pairs[0][0])) == []


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
async def test_what_was_read_ahead_is_read_with_what_was_written_since(
    database: Database, space: Space, limit: int
) -> None:
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
async def test_range_that_was_read_ahead_has_what_any_read_of_it_has(
    database: Database, space: Space, ahead: int
) -> None:
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


async def test_clearing_a_range_leaves_its_end(database: Database, space: Space) -> None:
    pairs = await fill(database, space, 5)

    await database.run(lambda tr: tr.clear_range(pairs[1][0], pairs[4][0]))

    assert await everything(database, space) == [pairs[0], pairs[4]]


async def test_a_counter_begins_at_zero_and_takes_negative_amounts(database: Database, space: Space) -> None:
    key = space.pack(("count",))

    for amount in (5, -7, 1):
        await database.run(lambda tr, amount=amount: tr.add(key, amount))  # type: ignore[misc]

    value = await database.read(lambda tr: tr.get(key))
    assert value == write_counter(-1)
    assert read_counter(value) == -1


async def test_a_counter_wraps_around_and_cuts_what_was_longer(database: Database, space: Space) -> None:
    wrapping, longer, shorter = (space.pack((name,)) for name in ("wrapping", "longer", "shorter"))

    def body(tr: Transaction) -> None:
        tr.set(wrapping, write_counter(2**63 - 1))
        tr.add(wrapping, 1)
        tr.set(longer, b"\x01" + bytes(7) + b"rest")
        tr.add(longer, 1)
        tr.set(shorter, b"\xff")
        tr.add(shorter, 1)

    await database.run(body)

    found = await database.read(lambda tr: [tr.get(key) for key in (wrapping, longer, shorter)])
    assert found == [write_counter(-(2**63)), write_counter(2), write_counter(256)]


async def test_the_read_version_grows_with_commits_only(database: Database, space: Space) -> None:
    async def version() -> int:
        return await database.run(lambda tr: tr.get_read_version())

    before = await version()
    await database.run(lambda tr: tr.set(space.pack(("a",)), b""))
    after = await version()

    assert after > before
    assert await database.read(lambda tr: tr.get_read_version()) >= after
