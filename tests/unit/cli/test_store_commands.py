"""`coditect dispatcher backup` and `restore`: what is said, and with which exit code."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite.lock import FileLock
from tests.unit.cli.scene import Terminal


async def _made(path: Path) -> None:
    async with SqliteDatabase(path) as database:
        await database.run(lambda tr: tr.set(b"a", b"1"))


def test_backup_and_restore_say_what_lies_where(terminal: Terminal, tmp_path: Path) -> None:
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    asyncio.run(_made(path))

    backed = terminal.run("dispatcher", "backup", str(copy), "--store", f"sqlite:{path}")
    restored = terminal.run("dispatcher", "restore", str(copy), "--store", f"sqlite:{path}")

    assert (backed.code, restored.code) == (0, 0)
    assert str(copy) in backed.out + backed.err
    (kept,) = tmp_path.glob("ledger.db.before-*[0-9]")
    assert str(kept) in (restored.out + restored.err).replace("\n", "")


def test_restore_is_refused_while_a_dispatcher_owns_the_store(terminal: Terminal, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "ledger.db.lock")
    lock.acquire()

    told = terminal.run(
        "dispatcher", "restore", str(tmp_path / "copy.db"), "--store", f"sqlite:{tmp_path / 'ledger.db'}"
    )
    lock.close()

    assert told.code == 1
    assert "Another process owns the store" in told.err


@pytest.mark.parametrize("place", ["/proc/nowhere/copy.db", "x" * 300])
def test_file_that_the_system_refuses_is_named(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(_made(tmp_path / "ledger.db"))

    backed = terminal.run("dispatcher", "backup", place, "--store", "sqlite:ledger.db")
    restored = terminal.run("dispatcher", "restore", "ledger.db", "--store", "sqlite:/proc/nowhere/ledger.db")

    for told in (backed, restored):
        assert told.code == 1
        assert "A file cannot be read or written" in told.err
        assert "reason: " in told.err


def test_backup_of_a_store_that_there_is_not_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    told = terminal.run("dispatcher", "backup", str(tmp_path / "copy.db"), "--store", f"sqlite:{tmp_path / 'none.db'}")

    assert told.code != 0
    assert "There is no store" in told.err
