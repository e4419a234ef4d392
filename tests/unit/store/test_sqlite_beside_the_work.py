"""What SQLite does beside the work: the check of a file that was not closed in order, and questions."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from dispatcher.store import errors
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite import database as sqlite_database
from dispatcher.store.sqlite.file import connect
from dispatcher.store.transaction import Reads


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


async def test_a_file_that_was_not_closed_in_order_is_checked_beside_the_work(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await _damaged(path)
    left = _opened_and_never_closed(path)

    async with SqliteDatabase(path) as database:
        failed = await asyncio.wait_for(database.failure(), 20)
        with pytest.raises(errors.StoreFailed, match="damaged"):
            await database.read(lambda tr: tr.get(b"0"))
    left.close()

    assert "damaged" in failed.sentence


async def test_only_a_file_that_was_not_closed_in_order_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []
    monkeypatch.setattr(sqlite_database, "check_whole", lambda _, path: checked.append(path))
    path = tmp_path / "store.db"
    for _ in range(2):
        async with SqliteDatabase(path) as database:
            await database.run(lambda tr: tr.set(b"a", b"b"))
    in_order = list(checked)

    left = _opened_and_never_closed(path)
    async with SqliteDatabase(path):
        pass
    left.close()

    assert (in_order, checked) == ([], [path])


async def test_a_check_that_takes_long_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def endless(connection: sqlite3.Connection, _: Path) -> None:
        begun.set()
        connection.execute("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")

    monkeypatch.setattr(sqlite_database, "check_whole", endless)
    path = tmp_path / "store.db"
    async with SqliteDatabase(path):
        pass
    left = _opened_and_never_closed(path)
    async with SqliteDatabase(path) as database:
        assert await asyncio.to_thread(begun.wait, 20)
        await database.run(lambda tr: tr.set(b"a", b"b"))
        assert await database.read(lambda tr: tr.get(b"a")) == b"b"
    left.close()


async def test_questions_keep_no_other_read_waiting(tmp_path: Path) -> None:
    asked, told = threading.Barrier(3), threading.Event()

    def question(tr: Reads) -> None:
        asked.wait(20)
        told.wait(20)

    async with SqliteDatabase(tmp_path / "store.db") as database:
        questions = [asyncio.create_task(database.ask(question)) for _ in range(2)]
        await asyncio.to_thread(asked.wait, 20)

        assert await database.read(lambda tr: tr.get(b"a")) is None
        told.set()
        await asyncio.gather(*questions)
