"""What tests of every kind need."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil

from coditect.errors import Retryable

STALL_LOOK_SECONDS = 0.005
SAMPLE_SECONDS = 0.02


async def eventually(condition: Callable[[], object | Awaitable[object]], *, seconds: float = 90.0) -> None:
    """Returns when the condition (a function, or a coroutine function) is true; fails after the time.

    A condition that raises a retryable error is not true yet: a server of a busy machine may not answer in time.
    The time is for machines that are busy with something else: it says nothing of how fast the code is. Who waits long
    looks less often, each hundredth of the time: in virtual time a look is most of the work.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    while True:
        try:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
        except Retryable:
            answer = False
        if answer:
            return
        assert clock() < began + seconds, f"not true within {seconds} s"
        await asyncio.sleep(max(0.01, (clock() - began) / 100))


def children_with(word: str) -> set[int]:
    """The living processes below this one whose command line has the word; one may end while it is looked at."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if word in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def patient(seconds: float) -> float:
    """A time that is promised of an idle machine, longer by as much as this one is busy with something else now."""
    began, worked = time.monotonic(), time.thread_time()
    while time.thread_time() - worked < SAMPLE_SECONDS:
        pass
    waited = (time.monotonic() - began) / SAMPLE_SECONDS
    queued = os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * max(1.0, waited, queued)


async def longest_stall(seconds: float) -> float:
    """How long the loop stood still at most, beside what a thread saw of a machine that is busy with something else."""
    ended = threading.Event()
    machine = asyncio.create_task(asyncio.to_thread(_longest_pause_of_a_thread, ended))
    longest, until = 0.0, time.monotonic() + seconds
    while (before := time.monotonic()) < until:
        await asyncio.sleep(STALL_LOOK_SECONDS)
        longest = max(longest, time.monotonic() - before)
    ended.set()
    return max(0.0, longest - 3 * await machine)


def _longest_pause_of_a_thread(ended: threading.Event) -> float:
    longest = 0.0
    while not ended.is_set():
        before = time.monotonic()
        time.sleep(STALL_LOOK_SECONDS)
        longest = max(longest, time.monotonic() - before)
    return longest


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that another process may be writing to; one that is not there yet has none.

    A write that crosses a page of the file may be seen by half: what no line feed ends is left for the next look.
    """
    whole, _, _ = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    return whole.decode().splitlines()


async def probed(port: int, path: str) -> tuple[int, str]:
    """The status and the body of a health server's answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body.strip()
