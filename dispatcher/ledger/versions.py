"""The version of each kind of row in the store, and the refusal of rows that a newer dispatcher wrote.

A row is a JSON list, a JSON object or a tuple. A row of version 1 is nothing else, and all kinds are of version 1 now.
From version 2 on the number stands before the row in decimal digits, with which none of them begins. The digits are all
that a new version costs; the key stays as it is.

This is the one place where versions are known. `docs/layers.md` says when to raise one, and in which order releases
read and write it. Values that are one text or nothing (an edge's policy, a cursor, a routing key) have no version: a
change of them takes another key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from coditect.errors import InvalidTask, NewerVersion
from coditect.wire import json
from dispatcher.store.keys import Space

VERSION = 1
"""The version of every kind of row that this dispatcher reads and writes."""
NEWER_VERSION_FIX = "upgrade this dispatcher; until then a newer one has to work for the shard"
_DIGITS = b"0123456789"
_UNREADABLE = (ValueError, InvalidTask)
_TUPLE = Space()


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The format of one kind of row: how its fields are written and read."""

    kind: str
    """The name of the key under which the rows lie, as drawn in `keyspace.py`."""
    pack: Callable[[Any], bytes]
    """The function that encodes a row's fields."""
    decode: Callable[[bytes], Any]
    """The function that decodes a row's fields, and refuses a row that begins with a digit."""

    def pack_checked(self, fields: Any) -> bytes:
        """Encode fields that contain values from agents or clients, and check that the row can be decoded again.

        Raises:
            InvalidTask: when a value is nested too deep.
        """
        row = self.pack(fields)
        try:
            self.decode(row)
        except _UNREADABLE as error:
            fix = "make it flatter, or give it as a text"
            raise InvalidTask("A value is nested too deep to be kept", reason=str(error), fix=fix) from error
        return row

    def unpack(self, row: bytes) -> Any:
        """Decode a row, and return its fields.

        Raises:
            NewerVersion: when a newer dispatcher wrote the row; retryable.
            Exception: any error of the decoder, when the row is damaged.
        """
        try:
            return self.decode(row)  # nearly every row: nothing is looked at first
        except _UNREADABLE:
            self._refuse_newer(row)
            raise

    def _refuse_newer(self, row: bytes) -> None:
        version = int(row[: len(row) - len(row.lstrip(_DIGITS))] or b"1")
        if version > VERSION:
            raise NewerVersion(
                "A newer dispatcher wrote this row of the store",
                kind=self.kind,
                version=version,
                known=VERSION,
                fix=NEWER_VERSION_FIX,
            )


def _list(kind: str) -> RowFormat:
    return RowFormat(kind, to_json, from_json)


def _object(kind: str) -> RowFormat:
    return RowFormat(kind, json.dumps, json.loads)


def _tuple(kind: str) -> RowFormat:
    return RowFormat(kind, _TUPLE.pack, _decode_tuple)


def _decode_tuple(row: bytes) -> tuple[Any, ...]:
    if row[:1].isdigit():
        raise ValueError("A tuple does not begin with a digit")
    return _TUPLE.unpack(row)


WORKFLOW_HEAD = _list("workflow")
RUN = _list("run")
STATUS = _list("status")
ATTEMPT = _list("attempt")
NODE_DOCUMENT = _object("node")
ANSWER = _object("answer")
LOCK = _list("lock")
SCHEDULE = _list("schedule")
BREAKER_ROW = _list("breaker")
TRIGGER = _list("trigger")
DECISION = _list("decision")
AUDIT_ENTRY = _list("audit")
LEARNED = _list("learned")
THREAD = _list("thread")
THREAD_MESSAGE = _list("thread_message")
HANDOFF = _list("handoff")

SHARD_COUNT = _tuple("shards")
STORE = _tuple("store")
BEAT = _tuple("beat")
LEASE = _tuple("lease")
MARKER = _tuple("marker")
SHOWN_CURSOR = _tuple("shown")
UPLOAD = _tuple("upload")
VALUE = _tuple("value")
TIMER = _tuple("timer")
DUE = _tuple("due")
PUBLISHED = _tuple("published")
KEY = _tuple("key")
LOCK_QUEUE = _tuple("lock_queue")
LOCK_COUNT = _tuple("lock_count")
THREAD_SENT = _tuple("thread_sent")
THREAD_MEMBER = _tuple("thread_member")
THREAD_READER = _tuple("thread_reader")
SPACE_VERSION = _tuple("space")
CHECKPOINT = _tuple("checkpoint")
RESTORE = _tuple("restore")
