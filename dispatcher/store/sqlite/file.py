"""The SQLite file of a store: opening, schema, checks, and the store's errors in place of SQLite's.

::

    pairs(key BLOB PRIMARY KEY, value BLOB)   WITHOUT ROWID: the table is the ordered tree itself
    state(version INTEGER)                    one row: how many transactions were committed
    application_id, user_version              that it is Coditect's, and the version of this schema

In WAL mode with synchronous=FULL a commit is written to the log and synced before it is acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from dispatcher.store.errors import StoreFailed, StoreLocked, StoreMisconfigured

APPLICATION_ID = 0x434F4449
"""The number ``CODI`` in the header of a SQLite file, which marks the file as a Coditect store."""
SCHEMA_VERSION = 1
BUSY_SECONDS = 5.0
"""The longest time that SQLite waits for a lock that another connection holds."""
CACHE_KILOBYTES = 32_000
CHECKPOINT_PAGES = 1_000
"""The pages (4 MB) after which SQLite copies the write-ahead log into the file and reuses the log.

As long as it grows, every sync writes the file's new size as well, which takes twice as long: with 16 MB the first
thousands of commits were a tenth slower, and later ones no faster.
"""

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (version INTEGER NOT NULL);
INSERT INTO state SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM state);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""  # noqa: S608  # constants


def connect(path: Path) -> sqlite3.Connection:
    """Open a SQLite connection to a store's file, with explicit transactions; use by one thread at a time.

    A new file is for its owner alone: it has the values of all tasks.
    """
    with contextlib.suppress(OSError):  # an existing file is not opened here: closing it would drop SQLite's locks
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def connect_memory() -> sqlite3.Connection:
    """Open an empty store without a file, which ends with the connection; use in one thread."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(_SCHEMA)
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Set a connection to durable commits, refuse a file that is no store, and create the schema in a new file.

    The calling process must own the file.

    Raises:
        StoreMisconfigured: for a foreign file, a newer schema, or a file system without shared memory.
        StoreFailed: for a file whose header is damaged.
        StoreLocked: when another process holds the file.
    """
    try:
        tune(connection)
        refuse_foreign(connection, path)
        if _number(connection, "PRAGMA user_version") != SCHEMA_VERSION:
            _create(connection, path)
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    except sqlite3.Error as error:
        raise failure(error, path) from error


def tune(connection: sqlite3.Connection) -> None:
    """Set full synchronization (each commit is synced to disk) and the cache size on a SQLite connection."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KILOBYTES}")


def failure(error: sqlite3.Error, path: Path) -> StoreFailed | StoreLocked | StoreMisconfigured:
    """Return the store's error that stands for an error of SQLite; most are StoreFailed."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreLocked("Another program holds the store; close it", path=str(path), sqlite=name)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY:
            return StoreMisconfigured("The store cannot be opened for writing", path=str(path), sqlite=name)
        case sqlite3.SQLITE_NOTADB:
            return StoreMisconfigured("The file is not a store; name another", path=str(path), sqlite=name)
        case sqlite3.SQLITE_FULL:
            sentence = "The disk is full: make room and start again"
        case sqlite3.SQLITE_IOERR:
            sentence = "The disk failed: check it, then start again"
        case sqlite3.SQLITE_CORRUPT:
            sentence = "The store is damaged: restore its file from a backup"
        case _:
            sentence = "SQLite failed"
    return StoreFailed(sentence, path=str(path), sqlite=name, reason=str(error))


def _create(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreMisconfigured("SQLite cannot write ahead here; use a local disk", path=str(path), mode=mode)
    connection.executescript(_SCHEMA)


def refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a SQLite file that is neither empty nor a Coditect store, or that has a newer schema.

    Raises:
        StoreMisconfigured: for a file that is no store, or a store of a newer version.
    """
    owner, schema = _number(connection, "PRAGMA application_id"), _number(connection, "PRAGMA user_version")
    empty = not _number(connection, "SELECT count(*) FROM sqlite_master")
    if owner != APPLICATION_ID and not (empty and owner == schema == 0):
        raise StoreMisconfigured("The file is no store of ours; name another", path=str(path))
    if schema > SCHEMA_VERSION:
        raise StoreMisconfigured(
            "The store was written by a newer version; install that one",
            path=str(path),
            schema=schema,
            known=SCHEMA_VERSION,
        )


def check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Check every page of a store's file, and raise StoreFailed for damage; this takes seconds for each GB.

    SQLite's full check would only compare indexes in addition, and a store has none.

    Raises:
        StoreFailed: when the file is damaged.
        sqlite3.Error: when the check cannot run.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreFailed("The store is damaged: restore its file from a backup", path=str(path), reason=verdict)


def _number(connection: sqlite3.Connection, statement: str) -> int:
    (number,) = connection.execute(statement).fetchone()
    return int(number)


def roll_back(connection: sqlite3.Connection) -> None:
    """Roll back the connection's open transaction, unless SQLite has rolled it back already."""
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")
