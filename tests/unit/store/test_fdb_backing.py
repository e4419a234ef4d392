"""A transaction on FoundationDB that begins at the version of the commit before it, on a stub of the binding."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from dispatcher.store.errors import StoreUnavailable
from dispatcher.store.fdb import FdbDatabase
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.retry import EarlierTries
from dispatcher.store.transaction import KeyValue, Transaction
from tests import fdb_stub
from tests.fdb_stub import FdbStub

KEY = b"count"
AFTER = (KEY + b"\1", KEY + b"\xff")


def count(tr: Transaction) -> bytes | None:
    """Read a key, and a range beside it, write both, and announce that the next transaction does so, too."""
    tr.read_next([KEY], [AFTER], limit=1)
    tr.read_ahead([KEY], [AFTER], limit=1)
    tr.get_range(*AFTER, limit=1)
    tr.set(b"last", tr.get(KEY) or b"")
    tr.set(KEY, (tr.get(KEY) or b"") + b"1")
    return tr.get(KEY)


@pytest.fixture
def stub() -> FdbStub:
    return FdbStub()


@pytest.fixture
async def database(stub: FdbStub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FdbDatabase]:
    """A database whose next transaction has begun early, and has the count 11."""
    monkeypatch.setattr("dispatcher.store.fdb.EARLY_SECONDS", 60.0)
    monkeypatch.setattr("dispatcher.store.fdb.FRESH_SECONDS", 60.0)
    async with FdbDatabase(binding=stub) as opened:
        for _ in range(2):
            await opened.run(count)
        await asyncio.sleep(0)
        yield opened


@pytest.fixture
async def other(stub: FdbStub) -> AsyncIterator[FdbDatabase]:
    async with FdbDatabase(binding=stub) as opened:
        yield opened


async def test_nothing_is_asked_for_that_was_announced(
    stub: FdbStub, database: FdbDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[object]()
    for name in ("get", "get_range", "get_read_version"):
        monkeypatch.setattr(fdb_stub._TransactionRead, name, lambda _, *what: asked.append(what))

    def body(tr: Transaction) -> bytes | None:
        tr.read_ahead([KEY], [AFTER], limit=1)
        tr.get_range(*AFTER, limit=1)
        value = tr.get(KEY)
        tr.set(b"last", value or b"")
        return value

    assert (await database.run(body), asked) == (b"11", [])
    assert stub.disk.values[b"last"] == b"11"


async def is_early(database: FdbDatabase, stub: FdbStub) -> bool:
    """Tell whether the next transaction has begun early, by running it."""
    before = stub.versions_asked
    await asyncio.sleep(0)
    await database.run(lambda tr: tr.get(b"unwritten"))
    return stub.versions_asked == before


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize(
    ("write", "value", "pairs"),
    [
        (lambda tr: tr.set(KEY, b"mine"), b"mine", [(KEY, b"mine"), (KEY + b"\1", b"")]),
        (lambda tr: tr.clear(KEY), None, [(KEY + b"\1", b"")]),
        (lambda tr: tr.clear_range(KEY, KEY + b"\xff"), None, []),
        (lambda tr: tr.set(KEY + b"\2", b"mine"), b"11", [(KEY, b"11"), (KEY + b"\1", b""), (KEY + b"\2", b"mine")]),
    ],
)
async def test_what_the_function_wrote_is_read_in_place_of_what_was_announced(
    stub: FdbStub,
    database: FdbDatabase,
    keys: tuple[bytes, ...],
    write: Callable[[Transaction], None],
    value: bytes | None,
    pairs: list[KeyValue],
) -> None:
    whole = (KEY, KEY + b"\xff")

    def announce(tr: Transaction) -> None:
        tr.read_next(keys, [whole])
        tr.set(KEY + b"\1", b"")

    def body(tr: Transaction) -> tuple[bytes | None, list[KeyValue]]:
        write(tr)
        return tr.get(KEY), tr.get_range(*whole)

    await database.run(announce)
    asked = stub.versions_asked
    await asyncio.sleep(0)

    assert await database.run(body) == (value, pairs)
    assert stub.versions_asked == asked


async def test_written_value_is_read_in_place_of_an_announced_one(database: FdbDatabase) -> None:
    assert [await database.run(count) for _ in range(3)] == [b"111", b"1111", b"11111"]


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (KEY, lambda tr: tr.get(KEY)),
        (KEY, lambda tr: tr.snapshot.get(KEY)),
        (KEY, count),
        (b"elsewhere", lambda tr: tr.snapshot.get(b"elsewhere")),
        (b"elsewhere", lambda tr: tr.snapshot.get_many([b"elsewhere"])[0]),
        (AFTER[0], lambda tr: tr.get_range(*AFTER, limit=1)[0][1]),
        (AFTER[0], lambda tr: tr.snapshot.get_range(*AFTER, limit=1)[0][1]),
        (AFTER[0], lambda tr: tr.snapshot.get_ranges([AFTER])[0][0][1]),
    ],
)
async def test_what_another_process_changed_since_the_last_commit_is_seen(
    database: FdbDatabase, other: FdbDatabase, key: bytes, read: Callable[[Transaction], bytes | None]
) -> None:
    for value in (b"others", b"others too"):
        await other.run(lambda tr: tr.set(key, value))  # noqa: B023

        assert (await database.run(read) or b"").startswith(value)
        await database.run(count)
        await asyncio.sleep(0)
    assert database.repeats.keys() <= {1020}


async def test_what_another_process_committed_in_one_batch_with_the_last_commit_is_seen(
    stub: FdbStub, database: FdbDatabase
) -> None:
    stub.batched.append([("set", KEY, b"others")])
    await database.run(count)

    assert await database.run(count) == b"others1"


@pytest.mark.parametrize("read", [FdbDatabase.read, FdbDatabase.ask])
async def test_a_question_is_asked_of_the_present_state(
    database: FdbDatabase, other: FdbDatabase, read: Callable[..., object]
) -> None:
    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await read(database, lambda tr: tr.get(KEY)) == b"others"  # type: ignore[misc]
    assert database.repeats == {}


async def test_function_that_raised_on_what_another_process_has_changed_runs_again(
    database: FdbDatabase, other: FdbDatabase
) -> None:
    tries = list[int]()

    def refuse(tr: Transaction) -> str:
        tries.append(tr.earlier.count)
        if tr.get(KEY) == b"11":
            raise LookupError
        return "done"

    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await database.run(refuse) == "done"
    await database.run(lambda tr: tr.set(KEY, b"11"))
    with pytest.raises(LookupError):
        await database.run(refuse)
    assert tries == [0, 0, 0]


@pytest.mark.parametrize(
    ("place", "code", "tries", "waited"),
    [
        ("committed", 1021, [0, 1], [1021]),
        ("committed", 1039, [0, 1], [1039]),
        ("commit", 1007, [0, 0], []),
        ("commit", 1020, [0, 0], []),
        ("commit", 2101, [0, 0], []),
    ],
)
async def test_what_began_early_is_an_earlier_try_only_if_it_may_be_committed(
    stub: FdbStub, database: FdbDatabase, place: str, code: int, tries: list[int], waited: list[int]
) -> None:
    found = list[int]()

    def note(tr: Transaction) -> None:
        found.append(tr.earlier.count)
        tr.set(b"noted", b"")

    stub.failures.append((place, code))
    await database.run(note)

    assert (found, stub.recovered) == (tries, waited)
    assert database.repeats == {code: 1}


async def test_tries_before_one_that_began_early_count(database: FdbDatabase) -> None:
    tries = list[int]()

    def note(tr: Transaction) -> None:
        tries.append(tr.earlier.count)
        tr.set(b"noted", b"")

    await database._attempt(note, EarlierTries(count=2))

    assert tries == [2]


async def test_every_transaction_has_a_time_limit(stub: FdbStub, database: FdbDatabase, other: FdbDatabase) -> None:
    stub.begun.clear()
    await other.run(lambda tr: tr.set(KEY, b"others"))
    await database.run(count)

    limits = [milliseconds for one in stub.begun for name, milliseconds in one.options.chosen if name == "set_timeout"]
    assert len(limits) == len(stub.begun) == 2  # the one that began early was begun before
    assert all(0 < milliseconds <= RUN_SECONDS * 1000 for milliseconds in limits)


async def test_closed_database_begins_nothing(stub: FdbStub, database: FdbDatabase) -> None:
    failures = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    await database.run(count)
    await database.__aexit__(None, None, None)
    begun = len(stub.begun)
    await asyncio.sleep(0)

    assert (len(stub.begun), failures) == (begun, [])
    with pytest.raises(StoreUnavailable):
        await database.run(count)


async def test_reopened_database_begins_anew(stub: FdbStub, database: FdbDatabase) -> None:
    await database.__aexit__(None, None, None)

    async with database:
        assert not await is_early(database, stub)


async def test_transactions_begin_early_after_one_that_failed_too(stub: FdbStub, database: FdbDatabase) -> None:
    def fail(_: Transaction) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await database.run(fail)
    await database.run(count)

    assert await is_early(database, stub)


async def test_transaction_that_comes_long_after_the_last_one_begins_none_early(
    stub: FdbStub, database: FdbDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic() + 61
    monkeypatch.setattr("dispatcher.store.fdb.time.monotonic", lambda: now)
    await database.run(count)
    seldom = await is_early(database, stub)
    await database.run(count)

    assert (seldom, await is_early(database, stub)) == (False, True)


async def test_no_transaction_begins_at_the_version_of_a_commit_of_nothing(
    database: FdbDatabase, other: FdbDatabase
) -> None:
    await database.run(lambda tr: tr.set(b"unread", b""))  # takes the one that has begun
    await database.run(lambda tr: tr.read_next([KEY]))
    await asyncio.sleep(0)
    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await database.run(count) == b"others1"
    assert database.repeats == {}


async def test_reads_do_not_keep_an_old_one_young(
    database: FdbDatabase, other: FdbDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic() + 61
    monkeypatch.setattr("dispatcher.store.fdb.time.monotonic", lambda: now)
    await database.read(lambda tr: tr.get(KEY))
    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await database.run(count) == b"others1"
    assert database.repeats == {}


@pytest.mark.parametrize("name", ["EARLY_SECONDS", "FRESH_SECONDS"])
async def test_transaction_asks_for_a_version_when_the_last_one_is_old(
    database: FdbDatabase, other: FdbDatabase, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(f"dispatcher.store.fdb.{name}", -1.0)
    await database.run(count)
    await asyncio.sleep(0)
    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await database.run(count) == b"others1"
    assert database.repeats == {}


async def test_no_transaction_begins_early_while_another_runs(database: FdbDatabase, other: FdbDatabase) -> None:
    loop = asyncio.get_running_loop()

    def around(tr: Transaction) -> bytes | None:
        asyncio.run_coroutine_threadsafe(database.run(count), loop).result()
        return tr.get(b"unwritten")

    await database.run(lambda tr: tr.get(b"unwritten"))  # takes the one that has begun
    await database.run(around)
    await asyncio.sleep(0)
    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await database.run(count) == b"others1"
    assert database.repeats == {}
