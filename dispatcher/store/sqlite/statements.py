"""Reads and writes as statements on a connection that is in a SQL transaction.

Every statement saved counts: each gives the interpreter's lock away and has to wait for it when the event loop is busy,
which takes longer than the statement. So what is written is gathered, and laid over what is read, and the whole group's
rows go to SQLite in a few statements at its end, in the order of their keys.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from coditect.errors import CoditectError
from dispatcher.store.overlay import Overlay
from dispatcher.store.sqlite.file import failure
from dispatcher.store.transaction import KeyValue, added, stamped

Item = TypeVar("Item")

MOST_ROWS = 256
"""Of one statement that writes."""
_GET = "SELECT value FROM pairs WHERE key = ?"
_KEYS = "SELECT key FROM pairs WHERE key >= ? AND key < ?"
_FORWARD = "SELECT key, value FROM pairs WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_BACKWARD = "SELECT key, value FROM pairs WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"


class Statements:
    """A `Backing` on SQLite, serial by construction: hence a snapshot read is a read like any other.

    Writes go to the `overlay`, which those of a group share; `write` takes them to SQLite.
    """

    __slots__ = ("_connection", "_overlay", "_path", "_version", "broken")

    def __init__(self, connection: sqlite3.Connection, path: Path, version: int, overlay: Overlay) -> None:
        self._connection = connection
        self._path = path
        self._version = version
        self._overlay = overlay
        self.broken: CoditectError | None = None
        """SQLite's failure, kept because the transaction function may have caught it."""

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        """See `Backing`."""
        own = self._overlay.values
        if key in own:
            return own[key]
        found = self._rows(_GET, (key,))
        return found[0][0] if found else None

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        """See `Backing`."""
        statement = _BACKWARD if reverse else _FORWARD
        own = self._overlay.between(begin, end)
        if not own:
            return self._rows(statement, (begin, end, limit or -1))
        most = limit + self._overlay.removed(own) if limit else -1
        return self._overlay.over(self._rows(statement, (begin, end, most)), own, limit=limit, reverse=reverse)

    def set(self, key: bytes, value: bytes) -> None:
        """See `Backing`."""
        self._overlay.put(key, value)

    def clear(self, key: bytes) -> None:
        """See `Backing`."""
        self._overlay.put(key, None)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """See `Backing`. Key by key: whoever clears a range of many does so in pages."""
        found = [key for (key,) in self._rows(_KEYS, (begin, end))]
        for key in (*found, *self._overlay.between(begin, end)):
            self._overlay.put(key, None)

    def add(self, key: bytes, amount: bytes) -> None:
        """See `Backing`. Nobody writes in between, so it may read."""
        self.set(key, added(self.get(key, snapshot=True), amount))

    def set_versionstamped_key(self, key: bytes, value: bytes) -> None:
        """See `Backing`. The version of this commit is known already, since nobody commits before."""
        self.set(stamped(key, (self._version + 1).to_bytes(8, "big") + b"\0\0"), value)

    def get_read_version(self) -> int:
        """See `Backing`."""
        return self._version

    def _rows(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            self.broken = failure(error, self._path)
            raise self.broken from error


def write(connection: sqlite3.Connection, overlay: Overlay) -> None:
    """Takes what was gathered to SQLite. Raises: sqlite3.Error, after which nothing of it may be committed."""
    keys = sorted(overlay.values)
    values = overlay.values
    for piece in _pieces([key for key in keys if values[key] is None]):
        connection.execute(_clear(len(piece)), piece)
    for piece in _pieces([key for key in keys if values[key] is not None]):
        connection.execute(_set(len(piece)), [each for key in piece for each in (key, values[key])])


def _pieces(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Of few different sizes: each is a statement that SQLite has to know."""
    at = 0
    while at < len(items):
        size = min(MOST_ROWS, 1 << ((len(items) - at).bit_length() - 1))
        yield items[at : at + size]
        at += size


@cache
def _set(rows: int) -> str:
    places = ", ".join(["(?, ?)"] * rows)
    return f"INSERT INTO pairs VALUES {places} ON CONFLICT (key) DO UPDATE SET value = excluded.value"  # noqa: S608


@cache
def _clear(rows: int) -> str:
    return f"DELETE FROM pairs WHERE key IN ({', '.join('?' * rows)})"  # noqa: S608 - places, no values
