"""The watchdog, which kills what a supervisor started when the supervisor itself is gone.

Every child carries ``CODITECT_STARTED_BY=<marker>:<token>:<child>:`` in its environment, and so does everything that
the child starts, also in a session of its own. A program that hides its environment has the first 15 bytes of that as
its name (`coditect.aio.launch.begin_program`). The watchdog is a process of its own session that holds one end of a
pipe; when the other end closes (the supervisor ended, by whatever signal) it kills every process that still carries the
marker, and ends. The watchdog is run by its path and imports psutil alone: small, and independent of the program that
it outlives.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

import psutil

MARKER = "CODITECT_STARTED_BY"
PARENT_CHECK_SECONDS = 2.0
QUIET_LOOKS = 2  # in the middle of exec a process shows no environment: nothing found once is no proof
LOOK_AGAIN_SECONDS = 0.02


def new_marker() -> str:
    """Return a random marker, short enough that a child's token fits into a process's name, too."""
    return os.urandom(4).hex()


def marked(prefix: str) -> list[psutil.Process]:
    """Return the user's other running processes whose variable CODITECT_STARTED_BY, or name, starts with `prefix`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real != os.getuid() or process.pid == os.getpid():
                continue
            if process.status() != psutil.STATUS_ZOMBIE and (
                f"{process.name()}:".startswith(prefix) or process.environ().get(MARKER, "").startswith(prefix)
            ):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def kill_marked(prefix: str, *, within_seconds: float = 10.0) -> int:
    """Kill every process whose marker starts with `prefix` until none is left, for 10 s at most; return their number.

    `within_seconds` changes the limit.

    No process is reaped: the exit codes stay with the parents that wait for them.
    """
    deadline = time.monotonic() + within_seconds
    killed: set[int] = set()
    quiet_looks = 0
    while quiet_looks < QUIET_LOOKS and time.monotonic() < deadline:
        remains = marked(prefix)
        quiet_looks = 0 if remains else quiet_looks + 1
        for process in remains:
            killed.add(process.pid)
            with suppress(psutil.Error):
                process.kill()
        if quiet_looks < QUIET_LOOKS:
            time.sleep(LOOK_AGAIN_SECONDS)
    return len(killed)


def main(marker: str, parent: int) -> None:
    """Wait until process `parent` ends or stdin closes, then kill every process with `marker` in its environment."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], PARENT_CHECK_SECONDS)
        if readable:
            break
    kill_marked(f"{marker}:")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
