"""Which process is writing: a lock beside the file, so that the operating system can name its holder.

SQLite's own lock says only that somebody holds it. A process that was stopped inside a transaction holds it for as
long as it is stopped, and whoever takes its work over has to know whom to end. The lock is POSIX's, on
``<store>.lock``: the kernel frees it when the process dies, and tells its number to others, translated into their
own PID namespace. SQLite's lock is taken under it and stays what makes transactions safe.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from dispatcher.store.errors import StoreLocked

log = logging.getLogger(__name__)

PAUSES_SECONDS = (0.0005, 0.001, 0.002, 0.005)
"""Between two tries for the lock; the last one repeats."""
ENDED_SECONDS = 5.0
ENDED_POLL_SECONDS = 0.01
SAME_START_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds the lock: its number and when it started, in seconds since the epoch."""

    pid: int
    started: float

    def end(self) -> bool:
        """Kills the process, if it is still the same, and waits until it is gone. Whether it was there."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) > SAME_START_SECONDS:
                return False
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            process.kill()
        except psutil.NoSuchProcess:
            return False
        _wait_for_end(process)
        log.warning("A process that held the store was ended", extra={"pid": self.pid, "started": self.started})
        return True


def _wait_for_end(process: psutil.Process) -> None:
    """Until it is gone, or only its entry is left that its parent has not read: it holds nothing any more."""
    deadline = time.monotonic() + ENDED_SECONDS
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(ENDED_POLL_SECONDS)
    log.error("A process was killed and is still there", extra={"pid": process.pid})


class WriteLock:
    """The lock of one store file. Not for two threads at once."""

    def __init__(self, path: Path) -> None:
        """Opens the lock's file; raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Frees it for good."""
        os.close(self._file)

    @contextmanager
    def held(self, seconds: float, *, given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Holds the lock; waits for it, trying again and again, until `given_up` or the time is up.

        Raises: StoreLocked, which names the holder.
        """
        self._acquire(seconds, given_up)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _acquire(self, seconds: float, given_up: Callable[[], bool]) -> None:
        began = time.monotonic()
        tries = 0
        while not self._taken():
            waited = time.monotonic() - began
            if waited > seconds or given_up():
                holder = self.holder()
                raise StoreLocked(
                    "Another process holds the store",
                    pid=holder.pid if holder else None,
                    started=holder.started if holder else None,
                    waited_seconds=round(waited, 3),
                )
            time.sleep(PAUSES_SECONDS[min(tries, len(PAUSES_SECONDS) - 1)])
            tries += 1

    def holder(self) -> Holder | None:
        """Who holds it, if it is another process that can be seen from here."""
        pid = _holding_pid(self._file)
        try:
            return Holder(pid, psutil.Process(pid).create_time()) if pid > 0 else None
        except psutil.NoSuchProcess:
            return None

    def _taken(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True


_DARWIN = sys.platform == "darwin"
_LAYOUT = struct.Struct("qqihh" if _DARWIN else "hhqqi")
"""``struct flock``: start, length, pid, type, whence there; type, whence, start, length, pid elsewhere."""


def _holding_pid(file: int) -> int:
    """0 when nobody else holds it."""
    wanted = (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET) if _DARWIN else (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fields = _LAYOUT.unpack(fcntl.fcntl(file, fcntl.F_GETLK, _LAYOUT.pack(*wanted))[: _LAYOUT.size])
    kind, pid = (fields[3], fields[2]) if _DARWIN else (fields[0], fields[4])
    return 0 if kind == fcntl.F_UNLCK else int(pid)
