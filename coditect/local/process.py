"""Processes by pid *and* start time, so that a number that was given out again is never taken for ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of this boot; equal only to itself."""

    pid: int
    started: str


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None if there is none, or only its zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid, _start_of(process))
    except psutil.NoSuchProcess:
        return None


def is_running(process: ProcessId) -> bool:
    """Whether exactly this process still runs. A zombie does not."""
    return identify(process.pid) == process


def _start_of(process: psutil.Process) -> str:
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return repr(process.create_time())
    # Ticks since boot do not move when somebody sets the clock; the name before them may hold spaces.
    try:
        return stat.read_text(errors="replace").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error
