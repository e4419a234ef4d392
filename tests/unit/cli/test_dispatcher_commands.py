"""`coditect dispatcher`: the control plane is run, asked for its state, backed up and restored."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

import dispatcher
from coditect.cli.dispatcher import GROUP
from coditect.errors import install_command
from coditect.settings.settings import Settings
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite.lock import FileLock
from tests.control_plane import SHARDS
from tests.unit.cli.scene import Terminal


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """The settings that the installed program was run with; it exits with 3."""
    settings: list[Settings] = []

    def main(given: Settings) -> int:
        settings.append(given)
        return 3

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EntryPoint, "load", lambda _: SimpleNamespace(main=main))
    return settings


def test_installed_program_is_run_and_its_exit_code_is_the_command_s(terminal: Terminal, ran: list[Settings]) -> None:
    words = ("--store", "sqlite:here.db", "--shards", "4", "--retention", "12h", "--health-port", "0")

    assert terminal.run("dispatcher", "run", *words).code == 3

    (settings,) = ran
    assert (settings.store_url, settings.shards, settings.keep_days) == ("sqlite:here.db", 4, 0.5)
    assert settings.health_port == 0


def test_what_no_option_says_is_taken_from_the_environment(
    terminal: Terminal, ran: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODITECT_STORE_URL", "fdb:/etc/fdb.cluster")
    monkeypatch.setenv("CODITECT_SHARDS", "7")

    terminal.run("dispatcher", "run", "--shards", "8")

    (settings,) = ran
    assert (settings.store_url, settings.shards, settings.health_port) == ("fdb:/etc/fdb.cluster", 8, None)


def test_the_dispatcher_s_program_is_what_is_installed() -> None:
    (installed,) = entry_points(group=GROUP)

    assert installed.load() is dispatcher
    assert callable(dispatcher.main)


def test_without_a_control_plane_it_says_what_to_install(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: EntryPoints())

    ran = terminal.run("dispatcher", "run")

    assert ran.code == 1
    assert "No control plane is installed" in ran.err
    assert f"Fix: {install_command('dispatcher')}" in ran.err


def test_control_plane_that_cannot_be_loaded_says_what_is_missing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = EntryPoint("dispatcher", "no_such_dispatcher", GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: EntryPoints((gone,)))

    ran = terminal.run("dispatcher", "run")

    assert ran.code == 1
    assert "no_such_dispatcher" in ran.err
    assert f"Fix: {install_command('dispatcher')}" in ran.err


def test_status_shows_every_dispatcher_with_what_it_counted_and_every_shard_with_its_owner(served: Terminal) -> None:
    document = served.run("dispatcher", "status", "--output", "json").json

    counts = {"under_way": 4, "refused": 1, "late": 2, "strange": 0, "unrecorded": 0, "dropped": 0, "restarts": 0}
    counts |= {"newer": 0, "recovery_ms": 0, "freed_ms": 0}
    assert document["dispatchers"] == [
        {"owner": "dispatcher-1", "shards": [0, 2]} | counts,
        {"owner": "dispatcher-2", "shards": [1, 3]} | counts,
        {"owner": "dispatcher-3", "shards": []} | dict.fromkeys(counts),
    ]
    shard = {"shard": 3, "owner": "dispatcher-2", "epoch": 1, "workflows": 3, "under_way": 2}
    assert document["shards"][3] == shard


def test_status_is_two_tables(served: Terminal) -> None:
    ran = served.run("dispatcher", "status")

    assert ran.code == 0
    dispatchers, shards = (block.splitlines() for block in ran.out.split("\n\n"))
    headings = "DISPATCHER SHARDS UNDER WAY REFUSED LATE STRANGE UNRECORDED DROPPED RESTARTS NEWER RECOVERY MS FREED MS"
    assert dispatchers[0].split() == headings.split()
    assert dispatchers[1].split() == ["dispatcher-1", "2", "4", "1", "2", *("0",) * 7]
    assert dispatchers[3].split() == ["dispatcher-3", "0", *("-",) * 10]
    assert len(shards) == 1 + SHARDS


@pytest.mark.parametrize("words", [("dispatcher", "status"), ("doctor", "--rebuild")], ids=" ".join)
def test_what_needs_a_control_plane_says_how_to_start_one(terminal: Terminal, words: tuple[str, ...]) -> None:
    ran = terminal.run(*words)

    assert ran.code == 1
    assert "coditect dispatcher run" in ran.err


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

    ran = terminal.run("dispatcher", "restore", f"{tmp_path}/copy.db", "--store", f"sqlite:{tmp_path}/ledger.db")
    lock.close()

    assert ran.code == 1
    assert "Another process owns the store" in ran.err


@pytest.mark.parametrize("place", ["/proc/nowhere/copy.db", "x" * 300])
def test_file_that_the_system_refuses_is_named(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(_made(tmp_path / "ledger.db"))

    backed = terminal.run("dispatcher", "backup", place, "--store", "sqlite:ledger.db")
    restored = terminal.run("dispatcher", "restore", "ledger.db", "--store", "sqlite:/proc/nowhere/ledger.db")

    for ran in (backed, restored):
        assert ran.code == 1
        assert "A file cannot be read or written" in ran.err
        assert "reason: " in ran.err


def test_backup_of_a_store_that_there_is_not_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    ran = terminal.run("dispatcher", "backup", str(tmp_path / "copy.db"), "--store", f"sqlite:{tmp_path / 'none.db'}")

    assert ran.code != 0
    assert "There is no store" in ran.err
