"""The reads and writes of a store's transaction as SQL statements, within an open SQL transaction.

Every step of a statement releases the interpreter's lock and has to wait for the lock when the event loop is busy,
which takes longer than the step; a statement takes one step for each row that it finds. So writes are gathered in
memory, over the rows that are read, and the whole group's rows go to SQLite in a few statements at its end, in the
order of their keys. A read of many keys at once comes as one row, a text of numbers and hexadecimal digits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from coditect.errors import CoditectError
from dispatcher.store.overlay import Overlay
from dispatcher.store.sqlite.file import failure
from dispatcher.store.transaction import KeyRange, KeyValue, added

Item = TypeVar("Item")

MAX_STATEMENT_ROWS = 256
"""The most keys that one SQL statement writes, or reads by key."""
MOST_RANGES = 64
"""The most ranges that one SQL statement reads."""
_GET = "SELECT value FROM pairs WHERE key = ?"
_KEYS = "SELECT key FROM pairs WHERE key >= ? AND key < ?"
_FORWARD = "SELECT key, value FROM pairs WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_BACKWARD = "SELECT key, value FROM pairs WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"


class Statements:
    """A transaction's reads and writes (a `Backing`) on a SQLite file, with the writes buffered in an `Overlay`.

    Transactions run one by one, so a snapshot read is a read like any other. The transactions of a group share the
    overlay; `write` takes it to SQLite.
    """

    __slots__ = ("_connection", "_overlay", "_path", "_version", "broken")

    def __init__(self, connection: sqlite3.Connection, path: Path, version: int, overlay: Overlay) -> None:
        self._connection = connection
        self._path = path
        self._version = version
        self._overlay = overlay
        self.broken: CoditectError | None = None
        """The error of the last SQL statement that failed, even if the transaction function caught the error."""

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        """Return the value of a key, with the writes that are buffered for the next commit; None for a missing key."""
        own = self._overlay.values
        if key in own:
            return own[key]
        found = self._rows(_GET, (key,))
        return found[0][0] if found else None

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        """Return up to `limit` pairs (0: all) of [begin, end), with the writes buffered for the next commit."""
        statement = _BACKWARD if reverse else _FORWARD
        own = self._overlay.between(begin, end)
        if not own:
            return self._rows(statement, (begin, end, limit or -1))
        row_limit = limit + self._overlay.removed(own) if limit else -1
        return self._overlay.over(self._rows(statement, (begin, end, row_limit)), own, limit=limit, reverse=reverse)

    def get_many(self, keys: Sequence[bytes], snapshot: bool) -> list[bytes | None]:
        """Return the values of several keys, read by few SQL statements."""
        own, below = self._overlay.values, {}
        for piece in _pieces([key for key in dict.fromkeys(keys) if key not in own], MAX_STATEMENT_ROWS):
            for number, value in self._row(_get_many(len(piece)), piece):
                below[piece[int(number)]] = bytes.fromhex(value)
        return [own[key] if key in own else below.get(key) for key in keys]

    def get_ranges(self, ranges: Sequence[KeyRange], limit: int, snapshot: bool) -> list[list[KeyValue]]:
        """Return the pairs of several ranges, read by few SQL statements."""
        below: dict[KeyRange, list[KeyValue]] = {}
        untouched = [each for each in dict.fromkeys(ranges) if not self._overlay.between(*each)]
        for piece in _pieces(untouched, MOST_RANGES):
            below.update((each, []) for each in piece)
            parameters = [*(key for each in piece for key in each), limit or -1]
            for number, key, value in self._row(_get_ranges(len(piece)), parameters):
                below[piece[int(number)]].append((bytes.fromhex(key), bytes.fromhex(value)))
        return [
            sorted(below[each]) if each in below else self.get_range(*each, limit, False, snapshot) for each in ranges
        ]

    def read_ahead(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Do nothing, since reads of a local file need no network round trip that reading ahead could save."""

    def read_next(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Do nothing, as `read_ahead`."""

    def set(self, key: bytes, value: bytes) -> None:
        """Buffer a key and its value in the overlay."""
        self._overlay.put(key, value)

    def clear(self, key: bytes) -> None:
        """Buffer the removal of a key in the overlay."""
        self._overlay.put(key, None)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Buffer the removal of each key of [begin, end) in the overlay; callers clear large ranges in pages."""
        found = [key for (key,) in self._rows(_KEYS, (begin, end))]
        for key in (*found, *self._overlay.between(begin, end)):
            self._overlay.put(key, None)

    def add(self, key: bytes, amount: bytes) -> None:
        """Add to a little-endian integer by a read and a write, since transactions run one by one."""
        self.set(key, added(self.get(key, snapshot=True), amount))

    def get_read_version(self) -> int:
        """Return the version of the state that the transaction reads, counting earlier transactions of its commit."""
        return self._version

    def _row(self, statement: str, parameters: Sequence[Any]) -> Iterator[list[str]]:
        """Run a SQL statement that returns its rows joined into one text, and yield each row as a list of strings."""
        ((text,),) = self._rows(statement, parameters)
        return (found.split(" ") for found in text.split(",")) if text else iter(())

    def _rows(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            self.broken = failure(error, self._path)
            raise self.broken from error


def write(connection: sqlite3.Connection, overlay: Overlay) -> None:
    """Write an overlay's pairs and removals to SQLite in few SQL statements.

    Raises:
        sqlite3.Error: when SQLite fails; no part of the overlay may be committed then.
    """
    keys = sorted(overlay.values)
    values = overlay.values
    for piece in _pieces([key for key in keys if values[key] is None], MAX_STATEMENT_ROWS):
        connection.execute(_clear(len(piece)), piece)
    for piece in _pieces([key for key in keys if values[key] is not None], MAX_STATEMENT_ROWS):
        connection.execute(_set(len(piece)), [each for key in piece for each in (key, values[key])])


def _pieces(items: Sequence[Item], limit: int) -> Iterator[Sequence[Item]]:
    """Yield the items in pieces of `most` or a smaller power of 2, so that SQLite prepares few different statements."""
    at = 0
    while at < len(items):
        size = min(limit, 1 << ((len(items) - at).bit_length() - 1))
        yield items[at : at + size]
        at += size


@cache
def _set(rows: int) -> str:
    places = ", ".join(["(?, ?)"] * rows)
    return f"INSERT INTO pairs VALUES {places} ON CONFLICT (key) DO UPDATE SET value = excluded.value"  # noqa: S608


@cache
def _clear(rows: int) -> str:
    return f"DELETE FROM pairs WHERE key IN ({', '.join('?' * rows)})"  # noqa: S608 - places, no values


@cache
def _get_many(keys: int) -> str:
    places = ", ".join(f"({number}, ?)" for number in range(keys))
    return (  # the order of the join is given: each key is looked up
        "SELECT group_concat(of.column1 || ' ' || hex(value))"  # noqa: S608 - numbers and places, no values
        f" FROM (VALUES {places}) AS of CROSS JOIN pairs WHERE key = of.column2"
    )


@cache
def _get_ranges(ranges: int) -> str:
    places = ", ".join(f"({number}, ?, ?)" for number in range(ranges))
    return (
        "SELECT group_concat(of.column1 || ' ' || hex(pairs.key) || ' ' || hex(value))"  # noqa: S608 - as above
        f" FROM (VALUES {places}) AS of CROSS JOIN pairs WHERE pairs.key IN"
        " (SELECT key FROM pairs WHERE key >= of.column2 AND key < of.column3 ORDER BY key LIMIT ?)"
    )
