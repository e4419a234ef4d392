"""What a killed, stopped or failing process leaves behind in its SQLite file."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dispatcher.store.errors import StoreLocked
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import read_counter
from tests.integration.store.child import PARTS, ROWS, write
from tests.servers import ROOT
from tests.support import eventually


class Child:
    """A process of `child.py`; what it has printed so far is in `lines`."""

    def __init__(self, path: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.integration.store.child", str(path), *arguments]
        # in a session of its own, where nobody's job control continues what is stopped
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.endswith(b"\n"):
                self.lines.append(line.decode().strip())

    def kill(self) -> list[str]:
        """Kills it and returns all that it was told."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        return self.lines


@contextmanager
def running(path: Path, *arguments: str) -> Iterator[Child]:
    child = Child(path, *arguments)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        for stream in (child.process.stdout, child.process.stderr):
            if stream is not None:
                stream.close()


async def names_in(database: SqliteDatabase) -> tuple[dict[str, int], int]:
    """How many parts each transaction has, and the count."""
    pairs, count = await database.read(lambda tr: (tr.get_range(*ROWS.range()), tr.get(b"count")))
    parts: dict[str, int] = {}
    for key, _ in pairs:
        name = ROWS.unpack(key)[0]
        parts[name] = parts.get(name, 0) + 1
    return parts, read_counter(count)


async def test_a_kill_loses_nothing_that_was_acknowledged_and_leaves_nothing_half(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    told: set[str] = set()

    for life in range(4):
        with running(path, "commit") as child:
            await eventually(lambda: len(child.lines) > 300 + 37 * life)  # noqa: B023  # of this life
            told.update(child.kill())

        async with SqliteDatabase(path) as database:
            parts, count = await names_in(database)
        assert told <= parts.keys(), f"life {life}"
        assert set(parts.values()) == {PARTS}
        assert count == len(parts)


async def test_store_of_a_stopped_process_is_locked_until_that_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with running(path, "stop") as child:
        await eventually(lambda: child.lines == ["stopped"])
        with pytest.raises(StoreLocked) as locked:
            async with SqliteDatabase(path, wait_seconds=0.3):
                pass
        assert locked.value.facts["pid"] == str(child.process.pid)

        waiting = asyncio.Event()
        opening = asyncio.create_task(written(path, "after", waiting))
        await waiting.wait()
        assert child.process.poll() is None, "nobody but its supervisor ends it"
        child.kill()

        assert await opening == ({"after": PARTS}, 1)


async def written(path: Path, name: str, waiting: asyncio.Event) -> tuple[dict[str, int], int]:
    """Write one transaction as soon as the store is free; what is in the store then."""
    async with SqliteDatabase(path, wait_seconds=30.0, on_wait=waiting.set) as database:
        await database.run(lambda tr: write(tr, name))
        return await names_in(database)


async def test_processes_that_open_a_store_together_own_it_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    told: list[str] = []
    with running(path, "commit") as one, running(path, "commit") as other, running(path, "commit") as third:
        waiting = [one, other, third]
        while waiting:
            await eventually(lambda: any(len(child.lines) > 20 for child in waiting))
            (owner,) = [child for child in waiting if child.lines]
            told += owner.kill()
            waiting.remove(owner)

    async with SqliteDatabase(path) as database:
        parts, count = await names_in(database)
    assert set(told) <= parts.keys()
    assert len({name.partition("-")[0] for name in parts}) == 3
    assert count == len(parts)


async def test_a_disk_that_refuses_to_write_ends_the_process_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with running(path, "fill", str(1_000_000)) as child:
        await asyncio.to_thread(child.process.wait, 40)
        assert child.process.stderr is not None
        said = child.process.stderr.read().decode()
        told = child.kill() if child.process.poll() is None else child.lines

    assert child.process.returncode == 1
    assert "ended: The dis" in said
    async with SqliteDatabase(path) as database:
        parts, count = await names_in(database)
    assert len(told) > 50
    assert set(told) <= parts.keys()
    assert set(parts.values()) == {PARTS}
    assert count == len(parts)
