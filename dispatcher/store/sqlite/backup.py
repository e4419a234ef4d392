"""The backup of a SQLite store into a new file, and the replacement of a store by such a file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dispatcher.store.errors import StoreMisconfigured
from dispatcher.store.sqlite.file import check_whole, connect, failure, refuse_foreign
from dispatcher.store.sqlite.lock import FileLock

BESIDE = ("-wal", "-shm", ".lock")
"""The suffixes of the files that SQLite and the lock keep beside a store's file."""


def copy(source: Path, target: Path) -> None:
    """Copy a SQLite store's current state into a new, checked file, while other processes go on writing.

    Raises:
        StoreMisconfigured: when the source is no store, or the target exists.
        StoreFailed: when SQLite fails.
    """
    if not source.is_file():
        raise StoreMisconfigured("There is no store", path=str(source), fix="name one by --store or CODITECT_STORE_URL")
    if target.exists():
        raise StoreMisconfigured("The file is there already; name another", path=str(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with closing(connect(source)) as original, closing(connect(target)) as made:
            refuse_foreign(original, source)
            original.backup(made)
            check_whole(made, target)
    except BaseException as error:
        remove(target)
        if isinstance(error, sqlite3.Error):
            raise failure(error, source) from error
        raise


@contextmanager
def replacing(store: Path, aside: Callable[[Path], Path]) -> Iterator[Path]:
    """Yield the path of a file to fill, then replace the store by the file; move the old store to where `aside` says.

    Raises:
        StoreLocked: while a process owns the store.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_name(store.name + ".lock"))
    filled = store.with_name(store.name + ".restoring")
    try:
        lock.acquire()
        remove(filled)
        yield filled
        if store.exists():
            kept = aside(store)
            for end in ("", "-wal"):
                if (part := store.with_name(store.name + end)).exists():
                    part.replace(kept.with_name(kept.name + end))
            store.with_name(store.name + "-shm").unlink(missing_ok=True)
        filled.replace(store)
        _sync(store.parent)
    finally:
        remove(filled)
        lock.close()


def remove(path: Path) -> None:
    """Remove a store's file and the files beside it, such as log and lock file; missing files are no error."""
    for end in ("", *BESIDE):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
