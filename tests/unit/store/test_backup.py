"""A SQLite store that is backed up while it is written to, and restored."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from coditect.errors import SetupError
from coditect.settings.settings import Settings
from dispatcher.backup import back_up, restore
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import MARKERS
from dispatcher.ledger.ownership import incarnation
from dispatcher.ledger.ownership.incarnation import NUMBERS, Incarnation
from dispatcher.store.errors import StoreFailed, StoreLocked, StoreMisconfigured
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import Transaction, read_counter

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


async def test_backup_under_load_is_one_instant_and_holds_nobody_up(tmp_path: Path) -> None:
    path, copies = tmp_path / "store.db", [tmp_path / "folder" / f"copy{number}.db" for number in range(3)]
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


async def test_restore_takes_the_copy_keeps_what_was_there_and_begins_a_new_incarnation(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: incarnation.begin(tr, "me", known=0))
        await database.run(lambda tr: tr.set(MARKERS.pack((0,)), versions.MARKER.pack(("marker", "occasion", 3))))
        await database.run(lambda tr: write(tr, 1))
        await asyncio.to_thread(back_up, settings(path), copy)
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


async def test_log_that_a_killed_owner_left_stays_with_its_store_and_not_with_the_copy(tmp_path: Path) -> None:
    path, copy, killed = (tmp_path / name for name in ("store.db", "copy.db", "killed.db"))
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: write(tr, 1))
        await asyncio.to_thread(back_up, settings(path), copy)
        await database.run(lambda tr: write(tr, 2))
        for end in ("", "-wal"):  # as they lie there when the owner is killed now
            shutil.copy(f"{path}{end}", f"{killed}{end}")

    kept = await asyncio.to_thread(restore, settings(killed), copy)

    assert kept is not None
    assert (await rows_of(killed), await rows_of(kept)) == ((PARTS, 1), (2 * PARTS, 2))


async def test_nothing_is_restored_over_a_store_that_is_in_use(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: write(tr, 1))
        await asyncio.to_thread(back_up, settings(path), copy)

        with pytest.raises(StoreLocked, match="Another process owns the store"):
            await asyncio.to_thread(restore, settings(path), copy)

        await database.run(lambda tr: write(tr, 2))
    assert await rows_of(path) == (2 * PARTS, 2)


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (a)")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "There is no store"),
        (_foreign, "no store of ours"),
        (lambda path: path.write_bytes(b"no database, but long enough to be looked at" * 99), "not a store"),
    ],
)
async def test_what_is_no_copy_is_refused_and_the_store_left_as_it_is(tmp_path: Path, make: object, words: str) -> None:
    path, source = tmp_path / "store.db", tmp_path / "source.db"
    assert callable(make)
    make(source)
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: write(tr, 1))

    with pytest.raises((StoreMisconfigured, StoreFailed), match=words):
        await asyncio.to_thread(restore, settings(path), source)

    assert await rows_of(path) == (PARTS, 1)
    assert [one.name for one in tmp_path.iterdir() if "restoring" in one.name or "before" in one.name] == []


async def test_backup_overwrites_nothing_and_knows_only_sqlite(tmp_path: Path) -> None:
    path, there = tmp_path / "store.db", tmp_path / "there.db"
    there.write_text("mine")
    async with SqliteDatabase(path):
        pass

    with pytest.raises(StoreMisconfigured, match="there already"):
        await asyncio.to_thread(back_up, settings(path), there)
    with pytest.raises(SetupError, match="Only a SQLite store"):
        back_up(Settings(store_url="fdb:"), tmp_path / "copy.db")

    assert there.read_text() == "mine"
