"""The SQLite file: who may open it, what damages it, how its writer groups and fails."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.store import errors
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite.file import APPLICATION_ID, SCHEMA_VERSION, connect, failure
from dispatcher.store.transaction import Transaction, read_counter


def test_every_code_of_sqlite_has_a_meaning() -> None:
    names = [name for name in dir(sqlite3) if name.startswith("SQLITE_") and isinstance(getattr(sqlite3, name), int)]
    locked, set_up = {"BUSY", "LOCKED"}, {"CANTOPEN", "PERM", "READONLY", "NOTADB"}

    for name in names:
        error = sqlite3.OperationalError("as sqlite says it")
        error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, name), name
        meant = failure(error, Path("store.db"))
        family = name.removeprefix("SQLITE_").split("_")[0]
        if getattr(sqlite3, name) & 0xFF == getattr(sqlite3, f"SQLITE_{family}", -1):
            expected = (
                errors.StoreLocked
                if family in locked
                else errors.StoreMisconfigured
                if family in set_up
                else errors.StoreFailed
            )
            assert type(meant) is expected, name

    assert "disk is full" in str(failure(_error(sqlite3.SQLITE_FULL), Path("store.db")))


def _error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as sqlite says it")
    error.sqlite_errorcode = code
    return error


def _nothing(tr: Transaction) -> None:
    """A transaction that does nothing."""


@asynccontextmanager
async def _occupied(
    database: SqliteDatabase, body: Callable[[Transaction], None] = _nothing
) -> AsyncIterator[asyncio.Task[None]]:
    """The writer is inside a transaction for as long as the block runs; the call that waits for it."""
    entered, go_on = threading.Event(), threading.Event()

    def slow(tr: Transaction) -> None:
        body(tr)
        entered.set()
        go_on.wait(10)

    call = asyncio.create_task(database.run(slow))
    await asyncio.to_thread(entered.wait)
    try:
        yield call
    finally:
        go_on.set()


async def test_it_is_durable_ordered_and_ours(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "store.db"
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: tr.set(b"a", b"1"))

    connection = connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert connection.execute("SELECT * FROM pairs").fetchall() == [(b"a", b"1")]
    connection.close()


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    opened: list[sqlite3.Connection] = []

    def connecting(path: Path) -> sqlite3.Connection:
        opened.append(connect(path))
        return opened[-1]

    async with SqliteDatabase(tmp_path / "store.db", connecting=connecting):
        full = 2
        assert opened[0].execute("PRAGMA synchronous").fetchone() == (full,)


async def test_versions_go_on_after_reopening(tmp_path: Path) -> None:
    versions = []
    for _ in range(3):
        async with SqliteDatabase(tmp_path / "store.db") as database:
            await database.run(lambda tr: tr.add(b"a", 1))
            versions.append(await database.read(lambda tr: tr.get_read_version()))

    assert versions == [1, 2, 3]


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (a)")
    connection.close()


def _newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_foreign, "no store of ours"),
        (_newer, "newer version"),
        (lambda path: path.write_bytes(b"no database, but long enough to be looked at " * 100), "not a store"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
)
async def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path, make: object, words: str) -> None:
    path = tmp_path / "store.db"
    assert callable(make)
    make(path)
    before = path.read_bytes() if path.is_file() else b""

    with pytest.raises(errors.StoreMisconfigured, match=words):
        await SqliteDatabase(path).__aenter__()

    assert (path.read_bytes() if path.is_file() else b"") == before


async def test_callers_share_a_sync(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db") as database:
        async with _occupied(database) as first:
            others = [asyncio.create_task(database.run(lambda tr: tr.add(b"count", 1))) for _ in range(50)]
            await asyncio.sleep(0)
        await asyncio.gather(first, *others)

        assert database.groups == 1
        assert read_counter(await database.read(lambda tr: tr.get(b"count"))) == 50


async def test_a_function_that_raises_leaves_its_neighbours_writes_alone(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db") as database:

        def writes(tr: Transaction) -> None:
            tr.set(b"a", b"1")
            tr.set(b"b", b"1")

        def raises(tr: Transaction) -> None:
            tr.clear(b"a")
            tr.set(b"b", b"2")
            tr.set(b"c", b"2")
            raise LookupError

        def sees(tr: Transaction) -> list[tuple[bytes, bytes]]:
            tr.set(b"d", b"3")
            return tr.get_range(b"", b"\xff")

        async with _occupied(database) as first:
            others = [asyncio.create_task(database.run(body)) for body in (writes, raises, sees)]
            await asyncio.sleep(0)
        await first
        _, refused, seen = await asyncio.gather(*others, return_exceptions=True)

        assert isinstance(refused, LookupError)
        assert seen == [(b"a", b"1"), (b"b", b"1"), (b"d", b"3")]
        assert await database.read(lambda tr: tr.get_range(b"", b"\xff")) == seen
        assert database.groups == 1


async def test_what_a_group_wrote_is_bounded_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.store.sqlite.writer.GROUP_SECONDS", 60.0)
    async with SqliteDatabase(tmp_path / "store.db") as database:
        piece = bytes(90_000)

        def much(tr: Transaction, number: int) -> None:
            for part in range(60):
                tr.set(b"%d %d" % (number, part), piece)

        await asyncio.gather(*(database.run(lambda tr, number=number: much(tr, number)) for number in range(8)))  # type: ignore[misc]

        assert database.groups > 1
        assert len(await database.read(lambda tr: [key for key, _ in tr.get_range(b"", b"\xff")])) == 8 * 60


async def test_what_only_reads_costs_no_sync(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db") as database:
        await database.run(lambda tr: tr.get(b"a"))

        assert database.groups == 0


async def test_readers_do_not_wait_for_the_writer(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db") as database:
        await database.run(lambda tr: tr.set(b"a", b"old"))
        async with _occupied(database, lambda tr: tr.set(b"a", b"new")) as writing:
            seen = await database.read(lambda tr: tr.get(b"a"))
        await writing

        assert seen == b"old"
        assert await database.read(lambda tr: tr.get(b"a")) == b"new"


async def test_a_caller_that_left_before_its_turn_writes_nothing(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db") as database:
        async with _occupied(database) as first:
            leaving = asyncio.create_task(database.run(lambda tr: tr.set(b"a", b"")))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
        await first

        assert await database.read(lambda tr: tr.get(b"a")) is None


async def test_closing_finishes_what_waits(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db") as database:
        calls = [asyncio.create_task(database.run(lambda tr: tr.add(b"count", 1))) for _ in range(30)]
        await asyncio.sleep(0)

    await asyncio.gather(*calls)
    async with SqliteDatabase(tmp_path / "store.db") as database:
        assert read_counter(await database.read(lambda tr: tr.get(b"count"))) == 30


async def test_a_store_that_does_not_come_to_a_caller_in_time_times_out(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db", run_seconds=0.05) as database, _occupied(database) as first:
        with pytest.raises(errors.TransactionTimedOut):
            await database.run(lambda tr: tr.get(b"a"))
        with pytest.raises(errors.TransactionTimedOut):
            await first


async def test_another_program_that_holds_the_file_makes_it_locked_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    def hasty(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=0.05, isolation_level=None, check_same_thread=False)

    async with SqliteDatabase(path, connecting=hasty) as database:
        other = connect(path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.StoreLocked):
            await database.run(lambda tr: tr.set(b"a", b"1"))
        other.execute("ROLLBACK")
        other.close()

        await database.run(lambda tr: tr.set(b"a", b"2"))
        assert await database.read(lambda tr: tr.get(b"a")) == b"2"


def _small_disk(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    connection.execute("PRAGMA max_page_count = 30")
    return connection


async def test_a_full_disk_stops_the_store_for_good_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    kept = 0
    async with SqliteDatabase(path, connecting=_small_disk) as database:
        with pytest.raises(errors.StoreFailed, match="disk is full"):
            for number in range(100):
                await database.run(lambda tr, number=number: tr.set(b"%03d" % number, bytes(5000)))  # type: ignore[misc]
                kept += 1

        assert "disk is full" in str(await database.failure())
        with pytest.raises(errors.StoreFailed):
            await database.run(lambda tr: tr.get(b"000"))
        with pytest.raises(errors.StoreFailed):
            await database.read(lambda tr: tr.get(b"000"))

    async with SqliteDatabase(path) as database:
        keys = await database.read(lambda tr: [key for key, _ in tr.get_range(b"", b"\xff")])
    assert keys == [b"%03d" % number for number in range(kept)]
    assert 5 < kept < 100


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (lambda: _error(sqlite3.SQLITE_IOERR_FSYNC), "disk failed"),
        (lambda: OSError("no such luck"), "disk failed"),
        (lambda: ValueError("a bug"), "writer failed"),
    ],
)
async def test_a_commit_that_fails_is_acknowledged_to_nobody_and_stops_the_store(
    tmp_path: Path, refusal: Callable[[], Exception], words: str
) -> None:
    refused = False

    class Refusing(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if refused and statement == "COMMIT":
                raise refusal()
            return super().execute(statement, *parameters)

    def connecting(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Refusing)

    path = tmp_path / "store.db"
    async with SqliteDatabase(path, connecting=connecting) as database:
        await database.run(lambda tr: tr.set(b"before", b""))
        refused = True
        answers = await asyncio.gather(
            *(database.run(lambda tr: tr.add(b"count", 1)) for _ in range(5)), return_exceptions=True
        )

        assert [type(one) for one in answers] == [errors.StoreFailed] * 5
        assert words in str(await asyncio.wait_for(database.failure(), 5.0))

    async with SqliteDatabase(path) as database:
        assert [key for key, _ in await database.read(lambda tr: tr.get_range(b"", b"\xff"))] == [b"before"]


async def test_a_failure_that_the_function_caught_is_still_a_failure(tmp_path: Path) -> None:
    def swallows(tr: Transaction) -> None:
        try:
            for number in range(1000):
                tr.set(b"%03d" % number, bytes(5000))
        except errors.StoreFailed:
            return

    async with SqliteDatabase(tmp_path / "store.db", connecting=_small_disk) as database:
        beside = asyncio.create_task(database.run(lambda tr: tr.set(b"beside", b"")))
        with pytest.raises(errors.StoreFailed):
            await database.run(swallows)
        await asyncio.gather(beside, return_exceptions=True)  # it was in the same group, or in none

        assert await asyncio.wait_for(database.failure(), 5.0)


async def test_a_folder_that_cannot_be_made_is_a_matter_of_set_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(errors.StoreMisconfigured, match="folder"):
        await SqliteDatabase(tmp_path / "file" / "store.db").__aenter__()
