"""The reads and writes of one transaction, as statements on a connection that is in a SQL transaction."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from coditect.errors import CoditectError
from dispatcher.store.sqlite.file import failure
from dispatcher.store.transaction import KeyValue, added, stamped

_GET = "SELECT value FROM pairs WHERE key = ?"
_SET = "INSERT INTO pairs VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_CLEAR = "DELETE FROM pairs WHERE key = ?"
_CLEAR_RANGE = "DELETE FROM pairs WHERE key >= ? AND key < ?"
_FORWARD = "SELECT key, value FROM pairs WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_BACKWARD = "SELECT key, value FROM pairs WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"


class Statements:
    """A `Backing` on SQLite, serial by construction: hence a snapshot read is a read like any other.

    A savepoint is set before the first write, so that `undo` leaves the neighbours in the SQL transaction alone. With
    `alone` there are none: then the SQL transaction has to be rolled back. Every statement saved counts, since each
    gives the interpreter's lock away and has to wait for it when the event loop is busy.
    """

    __slots__ = ("_alone", "_connection", "_path", "_version", "broken", "wrote")

    def __init__(self, connection: sqlite3.Connection, path: Path, version: int, *, alone: bool = False) -> None:
        self._connection = connection
        self._path = path
        self._version = version
        self._alone = alone
        self.wrote = False
        self.broken: CoditectError | None = None
        """SQLite's failure, kept because the transaction function may have caught it."""

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        """See `Backing`."""
        row = self._execute(_GET, (key,)).fetchone()
        return None if row is None else row[0]

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        """See `Backing`."""
        return self._execute(_BACKWARD if reverse else _FORWARD, (begin, end, limit or -1)).fetchall()

    def set(self, key: bytes, value: bytes) -> None:
        """See `Backing`."""
        self._write(_SET, (key, value))

    def clear(self, key: bytes) -> None:
        """See `Backing`."""
        self._write(_CLEAR, (key,))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """See `Backing`."""
        self._write(_CLEAR_RANGE, (begin, end))

    def add(self, key: bytes, amount: bytes) -> None:
        """See `Backing`. Nobody writes in between, so it may read."""
        self.set(key, added(self.get(key, snapshot=True), amount))

    def set_versionstamped_key(self, key: bytes, value: bytes) -> None:
        """See `Backing`. The version of this commit is known already, since nobody commits before."""
        self.set(stamped(key, (self._version + 1).to_bytes(8, "big") + b"\0\0"), value)

    def get_read_version(self) -> int:
        """See `Backing`."""
        return self._version

    def keep(self) -> None:
        """Makes what was written a part of the group."""
        if self.wrote and not self._alone:
            self._execute("RELEASE body")

    def undo(self) -> None:
        """Takes back what was written."""
        if self.wrote and not self._alone:
            self._execute("ROLLBACK TO body")
            self._execute("RELEASE body")
        self.wrote = False

    def _write(self, statement: str, parameters: tuple[Any, ...]) -> None:
        if not self.wrote:
            if not self._alone:
                self._execute("SAVEPOINT body")
            self.wrote = True
        self._execute(statement, parameters)

    def _execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.Error as error:
            self.broken = failure(error, self._path)
            raise self.broken from error
