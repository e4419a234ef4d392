"""The lock of a store file: one process owns the store, and the kernel frees the lock when that process ends.

The lock is ``flock(2)`` on ``<store>.lock``, which holds the owner's process id for people to read. The file itself
stays: to remove it would let two processes lock two different files of the same name.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dispatcher.store.errors import StoreLocked


class FileLock:
    """An exclusive lock on a lock file, held from `acquire` until `close` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Open or create the lock file, without taking the lock.

        Raises:
            OSError: when the file cannot be opened.
        """
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> None:
        """Take the lock without waiting, and write this process's id into the lock file.

        Raises:
            StoreLocked: when another process has the lock; names that process, and may be tried again.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(self._file, 20, 0).decode(errors="replace").strip()
            fix = "end that process, or wait: a dispatcher stands by until the store is free"
            raise StoreLocked("Another process owns the store", path=str(self._path), pid=pid, fix=fix) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Free the lock and close the lock file; the object cannot be used afterwards."""
        os.close(self._file)
