"""The SQLite file: who may open it, what damages it, how its writer fails, and how it is backed up."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coditect.errors import CoditectError, SetupError
from coditect.settings.settings import Settings
from dispatcher.backup import back_up, restore
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import MARKERS
from dispatcher.ledger.ownership import incarnation
from dispatcher.ledger.ownership.incarnation import NUMBERS, Incarnation
from dispatcher.store import errors
from dispatcher.store.errors import StoreFailed, StoreLocked, StoreMisconfigured
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite import database as sqlite_database
from dispatcher.store.sqlite.file import APPLICATION_ID, SCHEMA_VERSION, connect, failure
from dispatcher.store.transaction import Reads, Transaction, read_counter


def test_every_code_of_sqlite_has_a_meaning() -> None:
    names = [name for name in dir(sqlite3) if name.startswith("SQLITE_") and isinstance(getattr(sqlite3, name), int)]
    meanings: dict[str, type[CoditectError]] = dict.fromkeys(("BUSY", "LOCKED"), errors.StoreLocked)
    meanings |= dict.fromkeys(("CANTOPEN", "PERM", "READONLY", "NOTADB"), errors.StoreMisconfigured)

    for name in names:
        error = sqlite3.OperationalError("as sqlite says it")
        error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, name), name
        meant = failure(error, Path("store.db"))
        family = name.removeprefix("SQLITE_").split("_")[0]
        if getattr(sqlite3, name) & 0xFF == getattr(sqlite3, f"SQLITE_{family}", -1):
            assert type(meant) is meanings.get(family, errors.StoreFailed), name

    assert "disk is full" in str(failure(_error(sqlite3.SQLITE_FULL), Path("store.db")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SqliteDatabase]:
    async with SqliteDatabase(path) as opened:
        yield opened


def _error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as sqlite says it")
    error.sqlite_errorcode = code
    return error


async def keys(database: SqliteDatabase) -> list[bytes]:
    return await database.read(lambda tr: [key for key, _ in tr.get_range(b"", b"\xff")])


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


async def test_it_is_durable_ordered_and_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened, versions = tmp_path / "folder" / "store.db", list[sqlite3.Connection](), list[int]()

    def connecting(path: Path) -> sqlite3.Connection:
        opened.append(connect(path))
        return opened[-1]

    monkeypatch.setattr(sqlite_database, "connect", connecting)
    for _ in range(3):
        async with SqliteDatabase(path) as database:
            full = 2
            assert opened[0 if not versions else -1].execute("PRAGMA synchronous").fetchone() == (full,)
            await database.run(lambda tr: tr.set(b"a", b"1"))
            versions.append(await database.read(lambda tr: tr.get_read_version()))
    connection = connect(path)
    assert versions == [1, 2, 3]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert connection.execute("SELECT * FROM pairs").fetchall() == [(b"a", b"1")]
    connection.close()


def _made_by(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def _foreign(path: Path) -> None:
    _made_by(path, "CREATE TABLE other (a)")


def _newer(path: Path) -> None:
    _made_by(path, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_foreign, "no store of ours"),
        (_newer, "newer version"),
        (lambda path: path.write_bytes(b"no database, but long enough to be looked at " * 100), "not a store"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
)
async def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(
    path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else b""

    with pytest.raises(errors.StoreMisconfigured, match=words):
        await SqliteDatabase(path).__aenter__()

    assert (path.read_bytes() if path.is_file() else b"") == before


async def test_callers_share_a_sync_and_what_only_reads_costs_none(database: SqliteDatabase) -> None:
    await database.run(lambda tr: tr.get(b"a"))
    assert database.groups == 0
    async with _occupied(database) as first:
        others = [asyncio.create_task(database.run(lambda tr: tr.add(b"count", 1))) for _ in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(first, *others)
    assert database.groups == 1
    assert read_counter(await database.read(lambda tr: tr.get(b"count"))) == 50


async def test_what_a_group_wrote_is_bounded_in_memory(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.store.sqlite.writer.GROUP_SECONDS", 60.0)

    def much(tr: Transaction, number: int) -> None:
        for part in range(60):
            tr.set(b"%d %d" % (number, part), bytes(90_000))

    await asyncio.gather(*(database.run(lambda tr, number=number: much(tr, number)) for number in range(8)))  # type: ignore[misc]

    assert database.groups > 1
    assert len(await keys(database)) == 8 * 60


async def test_readers_do_not_wait_for_the_writer(database: SqliteDatabase) -> None:
    await database.run(lambda tr: tr.set(b"a", b"old"))
    async with _occupied(database, lambda tr: tr.set(b"a", b"new")) as writing:
        seen = await database.read(lambda tr: tr.get(b"a"))
    await writing

    assert seen == b"old"
    assert await database.read(lambda tr: tr.get(b"a")) == b"new"


async def test_a_caller_that_left_before_its_turn_writes_nothing(database: SqliteDatabase) -> None:
    async with _occupied(database) as first:
        leaving = asyncio.create_task(database.run(lambda tr: tr.set(b"a", b"")))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    await first

    assert await database.read(lambda tr: tr.get(b"a")) is None


async def test_closing_finishes_what_waits(path: Path) -> None:
    async with SqliteDatabase(path) as database:
        calls = [asyncio.create_task(database.run(lambda tr: tr.add(b"count", 1))) for _ in range(30)]
        await asyncio.sleep(0)

    await asyncio.gather(*calls)
    async with SqliteDatabase(path) as database:
        assert read_counter(await database.read(lambda tr: tr.get(b"count"))) == 30


async def test_a_store_that_does_not_come_to_a_caller_in_time_times_out(path: Path) -> None:
    async with SqliteDatabase(path, run_seconds=0.05) as database, _occupied(database) as first:
        with pytest.raises(errors.TransactionTimedOut):
            await database.run(lambda tr: tr.get(b"a"))
        with pytest.raises(errors.TransactionTimedOut):
            await first


async def test_another_program_that_holds_the_file_makes_it_locked_and_no_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=0.05, isolation_level=None, check_same_thread=False)

    monkeypatch.setattr(sqlite_database, "connect", hasty)
    async with SqliteDatabase(path) as database:
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


async def test_a_full_disk_stops_the_store_for_good_and_keeps_what_was_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 0
    monkeypatch.setattr(sqlite_database, "connect", _small_disk)
    async with SqliteDatabase(path) as database:
        with pytest.raises(errors.StoreFailed, match="disk is full"):
            for number in range(100):
                await database.run(lambda tr, number=number: tr.set(b"%03d" % number, bytes(5000)))  # type: ignore[misc]
                kept += 1

        assert "disk is full" in str(await database.failure())
        with pytest.raises(errors.StoreFailed):
            await database.run(lambda tr: tr.get(b"000"))
        with pytest.raises(errors.StoreFailed):
            await database.read(lambda tr: tr.get(b"000"))

    monkeypatch.undo()
    async with SqliteDatabase(path) as database:
        assert await keys(database) == [b"%03d" % number for number in range(kept)]
    assert 5 < kept < 100


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (lambda: _error(sqlite3.SQLITE_IOERR_FSYNC), "disk failed"),
        (lambda: OSError("no such luck"), "disk failed"),
        (lambda: ValueError("a bug"), "writer failed"),
    ],
)
async def test_a_commit_that_fails_stops_the_store(
    monkeypatch: pytest.MonkeyPatch, path: Path, refusal: Callable[[], Exception], words: str
) -> None:
    refused = False

    class Refusing(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if refused and statement == "COMMIT":
                raise refusal()
            return super().execute(statement, *parameters)

    def connecting(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Refusing)

    monkeypatch.setattr(sqlite_database, "connect", connecting)
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: tr.set(b"before", b""))
        refused = True
        answers = await asyncio.gather(
            *(database.run(lambda tr: tr.add(b"count", 1)) for _ in range(5)), return_exceptions=True
        )

        assert [type(one) for one in answers] == [errors.StoreFailed] * 5
        assert words in str(await asyncio.wait_for(database.failure(), 5.0))

    monkeypatch.undo()
    async with SqliteDatabase(path) as database:
        assert await keys(database) == [b"before"]


async def test_a_failure_that_the_function_caught_is_still_a_failure(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallows(tr: Transaction) -> None:
        try:
            for number in range(1000):
                tr.set(b"%03d" % number, bytes(5000))
        except errors.StoreFailed:
            return

    monkeypatch.setattr(sqlite_database, "connect", _small_disk)
    async with SqliteDatabase(path) as database:
        beside = asyncio.create_task(database.run(lambda tr: tr.set(b"beside", b"")))
        with pytest.raises(errors.StoreFailed):
            await database.run(swallows)
        await asyncio.gather(beside, return_exceptions=True)  # it was in the same group, or in none

        assert await asyncio.wait_for(database.failure(), 5.0)


async def test_a_folder_that_cannot_be_made_is_a_matter_of_set_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(errors.StoreMisconfigured, match="folder"):
        await SqliteDatabase(tmp_path / "file" / "store.db").__aenter__()


async def _damaged(path: Path) -> None:
    async with SqliteDatabase(path) as database:
        for number in range(20):
            await database.run(lambda tr, number=number: tr.set(b"%d" % number, bytes(2000)))  # type: ignore[misc]
    content = bytearray(path.read_bytes())
    page = 4096
    for start in range(3 * page, len(content) - page, page):
        content[start : start + 100] = b"\xab" * 100
    path.write_bytes(content)


def _opened_and_never_closed(path: Path) -> sqlite3.Connection:
    """As by a process that was killed: the log is left."""
    left = connect(path)
    left.execute("UPDATE state SET version = version + 1")
    assert path.with_name(path.name + "-wal").stat().st_size
    return left


async def test_a_file_that_was_not_closed_in_order_is_checked_beside_the_work(path: Path) -> None:
    await _damaged(path)
    left = _opened_and_never_closed(path)

    async with SqliteDatabase(path) as database:
        assert "damaged" in (await asyncio.wait_for(database.failure(), 20)).sentence
        with pytest.raises(errors.StoreFailed, match="damaged"):
            await database.read(lambda tr: tr.get(b"0"))
    left.close()


async def test_only_a_file_not_closed_in_order_is_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Path] = []
    monkeypatch.setattr(sqlite_database, "check_whole", lambda _, path: checked.append(path))
    for _ in range(2):
        async with SqliteDatabase(path) as database:
            await database.run(lambda tr: tr.set(b"a", b"b"))
    in_order = list(checked)

    left = _opened_and_never_closed(path)
    async with SqliteDatabase(path):
        pass
    left.close()

    assert (in_order, checked) == ([], [path])


async def test_a_long_check_does_not_hold_up_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(connection: sqlite3.Connection, _: Path) -> None:
        begun.set()
        connection.execute("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")

    monkeypatch.setattr(sqlite_database, "check_whole", endless)
    async with SqliteDatabase(path):
        pass
    left = _opened_and_never_closed(path)
    async with SqliteDatabase(path) as database:
        assert await asyncio.to_thread(begun.wait, 20)
        await database.run(lambda tr: tr.set(b"a", b"b"))
        assert await database.read(lambda tr: tr.get(b"a")) == b"b"
    left.close()


async def test_questions_keep_no_other_read_waiting(database: SqliteDatabase) -> None:
    asked, answered = threading.Barrier(3), threading.Event()

    def question(tr: Reads) -> None:
        asked.wait(20)
        answered.wait(20)

    questions = [asyncio.create_task(database.ask(question)) for _ in range(2)]
    await asyncio.to_thread(asked.wait, 20)

    assert await database.read(lambda tr: tr.get(b"a")) is None
    answered.set()
    await asyncio.gather(*questions)


PARTS = 3


def write(tr: Transaction, number: int) -> None:
    for part in range(PARTS):
        tr.set(b"row-%06d-%d" % (number, part), bytes(300))
    tr.add(b"count", 1)


async def rows_of(path: Path) -> tuple[int, int]:
    """How many rows there are, and how many transactions wrote them."""
    async with SqliteDatabase(path) as database:
        rows, count = await database.read(lambda tr: (tr.get_range(b"row-", b"row-\xff"), tr.get(b"count")))
    return len(rows), read_counter(count)


def settings(path: Path) -> Settings:
    return Settings(store_url=f"sqlite:{path}")


async def test_backup_under_load_is_one_instant_and_holds_nobody_up(path: Path) -> None:
    copies = [path.parent / "folder" / f"copy{number}.db" for number in range(3)]
    done = 0

    async def load(database: SqliteDatabase) -> None:
        nonlocal done
        while True:
            await database.run(lambda tr, number=done: write(tr, number))  # type: ignore[misc]
            done += 1

    async with SqliteDatabase(path) as database:
        loading = asyncio.create_task(load(database))
        for target in copies:
            before = done
            while done < before + 50:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(back_up, settings(path), target)
        loading.cancel()

    counts = [await rows_of(target) for target in copies]
    assert all(rows == PARTS * count for rows, count in counts)
    assert 50 <= counts[0][1] < counts[1][1] < counts[2][1] <= done + 1
    assert {path.name for path in copies[0].parent.iterdir()} >= {path.name for path in copies}


async def test_restore_takes_the_copy_keeps_what_was_there_and_begins_a_new_incarnation(path: Path) -> None:
    copy = path.with_name("copy.db")
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: incarnation.begin(tr, "me", known=0))
        await database.run(lambda tr: tr.set(MARKERS.pack((0,)), versions.MARKER.pack(("marker", "occasion", 3))))
        await database.run(lambda tr: write(tr, 1))
        await asyncio.to_thread(back_up, settings(path), copy)
        with pytest.raises(StoreLocked, match="Another process owns the store"):
            await asyncio.to_thread(restore, settings(path), copy)
        await database.run(lambda tr: write(tr, 2))
    assert {file.name: file.stat().st_mode & 0o077 for file in (path, copy)} == {path.name: 0, copy.name: 0}

    kept = await asyncio.to_thread(restore, settings(path), copy)

    assert kept is not None
    assert (await rows_of(path), await rows_of(kept)) == ((PARTS, 1), (2 * PARTS, 2))
    async with SqliteDatabase(path) as database:
        found = await database.read(incarnation.current)
        markers = await database.read(lambda tr: tr.get_range(*MARKERS.range()))
        begun = await database.run(lambda tr: incarnation.begin(tr, "other", known=0))
    assert isinstance(found, Incarnation)
    assert (found.store, found.number > 0, markers) == ("me", True, [])
    assert (begun.store, begun.floor) == ("me", (found.number + 1) * NUMBERS)


async def test_log_that_a_killed_owner_left_stays_with_its_store_and_not_with_the_copy(path: Path) -> None:
    copy, killed = path.with_name("copy.db"), path.with_name("killed.db")
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: write(tr, 1))
        await asyncio.to_thread(back_up, settings(path), copy)
        await database.run(lambda tr: write(tr, 2))
        for end in ("", "-wal"):  # as they lie there when the owner is killed now
            shutil.copy(f"{path}{end}", f"{killed}{end}")

    kept = await asyncio.to_thread(restore, settings(killed), copy)

    assert kept is not None
    assert (await rows_of(killed), await rows_of(kept)) == ((PARTS, 1), (2 * PARTS, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "There is no store"),
        (_foreign, "no store of ours"),
        (lambda path: path.write_bytes(b"no database, but long enough to be looked at" * 99), "not a store"),
    ],
)
async def test_what_is_no_copy_is_refused_and_the_store_left_as_it_is(
    path: Path, make: Callable[[Path], object], words: str
) -> None:
    source = path.with_name("source.db")
    make(source)
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: write(tr, 1))

    with pytest.raises((StoreMisconfigured, StoreFailed), match=words):
        await asyncio.to_thread(restore, settings(path), source)

    assert await rows_of(path) == (PARTS, 1)
    assert [one.name for one in path.parent.iterdir() if "restoring" in one.name or "before" in one.name] == []


async def test_backup_overwrites_nothing_and_knows_only_sqlite(path: Path) -> None:
    there = path.with_name("there.db")
    there.write_text("mine")
    async with SqliteDatabase(path):
        pass

    with pytest.raises(StoreMisconfigured, match="there already"):
        await asyncio.to_thread(back_up, settings(path), there)
    with pytest.raises(SetupError, match="Only a SQLite store"):
        back_up(Settings(store_url="fdb:"), path.with_name("copy.db"))

    assert there.read_text() == "mine"
