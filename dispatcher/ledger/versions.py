"""The version of each kind of row in the store, and how rows of earlier versions are read.

A row is a JSON list, a JSON object or a tuple. A row of version 1 is nothing else; from version 2 on the number stands
before it in decimal digits, with which none of them begins. The digits are all that
a new version costs; the key stays as it is.

This is the one place where versions are known. To raise one, append a step to the format of the kind: a pure function
that makes the fields of version n + 1 of those of version n. `docs/layers.md` says when to, and in which order releases
read and write a new version. Values that are one text or nothing (an edge's policy, a cursor, a routing key) have no
version: a change of them takes another key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from coditect.errors import InvalidTask, NewerVersion
from coditect.wire import json
from dispatcher.store.keys import Space

Step = Callable[[Any], Any]
"""A pure function from the fields of a row's version to those of the next; it may run any number of times."""

NEWER_VERSION_FIX = "upgrade this dispatcher; until then a newer one has to work for the shard"
_DIGITS = b"0123456789"
_UNREADABLE = (ValueError, InvalidTask)
_TUPLE = Space()
_STATES = ("active", "paused")


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The format of one kind of row: how its fields are written, and how rows of each version are read."""

    kind: str
    """The name of the key under which the rows lie, as drawn in `keyspace.py`."""
    pack: Callable[[Any], bytes]
    """The function that encodes a row's fields as version 1."""
    decode: Callable[[bytes], Any]
    """The function that decodes a row's fields from version 1, and refuses a row that begins with a digit."""
    steps: tuple[Step, ...] = ()
    """The functions that convert fields from version 1 to 2, from 2 to 3, and so on."""

    @property
    def version(self) -> int:
        """The highest version of the row that this dispatcher can read."""
        return len(self.steps) + 1

    def pack_as(self, version: int, fields: Any) -> bytes:
        """Encode the fields as a row of the given `version`, 2 or more, whose number is written before the fields.

        Callers give the lowest version that knows all of the fields that are set.
        """
        return b"%d%b" % (version, self.pack(fields))

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
        """Decode a row of any known version, and return its fields converted to the newest version.

        Raises:
            NewerVersion: when a newer dispatcher wrote the row; retryable.
            Exception: any error of the decoder, when the row is damaged.
        """
        try:
            fields = self.decode(row)  # nearly every row: nothing is looked at first
        except _UNREADABLE:
            return self._unpack_numbered(row)
        for step in self.steps:
            fields = step(fields)
        return fields

    def _unpack_numbered(self, row: bytes) -> Any:
        content = row.lstrip(_DIGITS)
        version = int(row[: len(row) - len(content)] or b"1")
        if version > self.version:
            raise NewerVersion(
                "A newer dispatcher wrote this row of the store",
                kind=self.kind,
                version=version,
                known=self.version,
                fix=NEWER_VERSION_FIX,
            )
        fields = self.decode(content)
        for step in self.steps[version - 1 :]:
            fields = step(fields)
        return fields


def _list(kind: str, *steps: Step) -> RowFormat:
    return RowFormat(kind, to_json, from_json, steps)


def _object(kind: str, *steps: Step) -> RowFormat:
    return RowFormat(kind, json.dumps, json.loads, steps)


def _tuple(kind: str, *steps: Step) -> RowFormat:
    return RowFormat(kind, _TUPLE.pack, _decode_tuple, steps)


def _with_defaults(fields: Any) -> Any:
    """Return a row's fields unchanged, to convert them to a next version that only adds fields with defaults."""
    return fields


def _as_schedule(fields: Any) -> Any:
    """Return the fields of a schedule's report, which is the row from version 2 on."""
    state = _STATES[bool(fields[10])]
    ticks = [fields[0] or None, fields[1] if fields[0] else None, fields[2] or None]
    return [fields[7], state, *ticks, *fields[3:7], *fields[8:10], fields[11], fields[12] or None, *fields[13:]]


def _as_trigger(fields: Any) -> Any:
    """Return the fields of a trigger's report, which is the row from version 2 on."""
    declared = [fields[0], *(text or None for text in fields[1:5])]
    return [*declared, _STATES[bool(fields[6])], fields[5], *fields[7:10], fields[10] or None, fields[11]]


def _decode_tuple(row: bytes) -> tuple[Any, ...]:
    if row[:1].isdigit():
        raise ValueError("A tuple does not begin with a digit")
    return _TUPLE.unpack(row)


WORKFLOW_HEAD = _list("workflow", _with_defaults, _with_defaults)
RUN = _list("run", *[_with_defaults] * 5)
STATUS = _list("status", *[_with_defaults] * 3)
ATTEMPT = _list("attempt")
NODE_DOCUMENT = _object("node", *[_with_defaults] * 3)
ANSWER = _object("answer")
LOCK = _list("lock", _with_defaults)
SCHEDULE = _list("schedule", _as_schedule)
BREAKER_ROW = _list("breaker")
TRIGGER = _list("trigger", _as_trigger)
DECISION = _list("decision")
AUDIT_ENTRY = _list("audit")
LEARNED = _list("learned")
THREAD = _list("thread", _with_defaults)
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
OUTBOX = _tuple("outbox")
PUBLISHED = _tuple("published")
KEY = _tuple("key", _with_defaults)
LOCK_QUEUE = _tuple("lock_queue")
LOCK_COUNT = _tuple("lock_count")
THREAD_SENT = _tuple("thread_sent")
THREAD_MEMBER = _tuple("thread_member")
THREAD_READER = _tuple("thread_reader")
SPACE_VERSION = _tuple("space")
CHECKPOINT = _tuple("checkpoint")
RESTORE = _tuple("restore")
