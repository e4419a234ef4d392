"""Processes identified by pid *and* start time, so that a reused pid is never mistaken for the earlier process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

LOOKS = 10
"""Number of checks within the time for which a process may stand stopped."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """The identity of a process until the machine's next boot: pid and start time, unique in that time."""

    pid: int
    started: str


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the process that has the pid now; None when there is none, or only a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid, _start_of(process))
    except psutil.NoSuchProcess:
        return None


def is_running(process: ProcessId) -> bool:
    """Tell whether exactly the identified process still runs; a zombie does not run."""
    return identify(process.pid) == process


@asynccontextmanager
async def ended_if_stopped(pid: int, *, name: str, bound_seconds: float) -> AsyncIterator[None]:
    """Kill a process that stays stopped (SIGSTOP) for `bound_seconds` inside the block; with 0 never kill it.

    A process that runs and hangs ends itself (`loop_watchdog`); a stopped one cannot.
    """
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(_end_if_stopped(pid, name, bound_seconds)) if bound_seconds else None
        try:
            yield
        finally:
            if looking is not None:
                looking.cancel()


async def _end_if_stopped(pid: int, name: str, bound_seconds: float) -> None:
    looks = 0
    while looks < LOOKS:
        await asyncio.sleep(bound_seconds / LOOKS)
        looks = looks + 1 if _stands_stopped(pid) else 0
    log.warning("A process that stood stopped is killed", extra={"program": name, "pid": pid})
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _stands_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _start_of(process: psutil.Process) -> str:
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return repr(process.create_time())
    # Ticks since boot do not move when somebody sets the clock; the name before them may hold spaces.
    try:
        return stat.read_text(errors="replace").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error
