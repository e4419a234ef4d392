"""The number of executed tasks, for clients that get no results: a shared page of memory for each agent."""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from functools import cache
from pathlib import Path

FOLDER = "BENCH_TALLY_FOLDER"
PAGE = struct.Struct("<3q")
"""The layout of a page: the count, and the times of the first and the last execution in monotonic nanoseconds."""
POLL_SECONDS = 0.002


class Tally:
    """The count of the tasks that one agent process has executed, in a shared page of memory."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(PAGE.size))
        with file.open("r+b") as page:
            self._page = mmap.mmap(page.fileno(), PAGE.size)
        self._count = 0
        self._first_ns = 0

    def add(self) -> None:
        """Count an executed task, with the time."""
        now_ns = time.monotonic_ns()
        self._count += 1
        self._first_ns = self._first_ns or now_ns
        PAGE.pack_into(self._page, 0, self._count, self._first_ns, now_ns)


@cache
def own_tally() -> Tally:
    """Return the calling process's count, in the folder that the environment names."""
    return Tally(Path(os.environ[FOLDER]) / str(os.getpid()))


def total(folder: Path) -> int:
    """Return the count of all agent processes so far."""
    return sum(count for count, _, _ in _pages(folder))


def span_seconds(folder: Path) -> float:
    """Return the seconds from the first execution to the last one, of any process; 0 without any."""
    pages = [page for page in _pages(folder) if page[0]]
    if not pages:
        return 0.0
    return (max(last for _, _, last in pages) - min(first for _, first, _ in pages)) / 1e9


def _pages(folder: Path) -> list[tuple[int, int, int]]:
    whole = (text for file in folder.iterdir() if len(text := file.read_bytes()) == PAGE.size)
    return [PAGE.unpack(text) for text in whole]


async def reached(folder: Path, wanted: int, *, seconds: float) -> None:
    """Wait until `wanted` tasks have been executed.

    Raises:
        TimeoutError: when that takes longer than `seconds`.
    """
    async with asyncio.timeout(seconds):
        while total(folder) < wanted:  # noqa: ASYNC110 - other processes count
            await asyncio.sleep(POLL_SECONDS)
