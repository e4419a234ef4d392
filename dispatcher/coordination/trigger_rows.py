"""The row of a trigger in the store, and the queries that list and read triggers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coditect.wire.control import Verb
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import TRIGGERS
from dispatcher.ledger.workflows.queries import Body, page_of
from dispatcher.store.transaction import KeyValue, Reads, Transaction

BY = "trigger"
"""The kind of the stored value that holds the request to start a trigger's workflow, or its signal's value."""
CHANGES: frozenset[str] = frozenset({Verb.TRIGGER_ADD, Verb.TRIGGER_PAUSE, Verb.TRIGGER_RESUME, Verb.TRIGGER_REMOVE})
"""The verbs after which a trigger's queue is to be made or deleted."""


@dataclass(slots=True)
class TriggerRecord:
    """The row of a trigger: how it was declared, and how many of its events started something or failed."""

    name: str
    event: str
    """The topic pattern of the events' types."""
    when: str
    """The expression that an event must fulfil; empty for every event."""
    workflow: str
    """The name of the workflow that each event starts; empty for a trigger that sends a signal."""
    signal: str
    """The name of the signal that each event sends; empty for a trigger that starts a workflow."""
    to: str
    """The expression that finds the id of the signal's workflow in the event."""
    created_ms: int
    paused: bool = False
    runs: int = 0
    """The number of workflows that were started, or of signals that were sent."""
    failed: int = 0
    """The number of events from which nothing could be started."""
    last_ms: int | None = None
    """The instant of the last event that started or sent something."""
    last_run: str = ""
    """The id of the workflow that was last started, or to which a signal was last sent."""
    reason: str = ""
    """Why the last event failed; empty when a later event started or sent something."""

    def as_json(self) -> dict[str, Any]:
        """Return the trigger as JSON values for answers to requests."""
        return {
            "trigger": self.name,
            "event": self.event,
            "when": self.when or None,
            "workflow": self.workflow or None,
            "signal": self.signal or None,
            "to": self.to or None,
            "state": "paused" if self.paused else "active",
            "created_at": self.created_ms,
            "runs": self.runs,
            "failed": self.failed,
            "last": self.last_ms,
            "last_run": self.last_run or None,
            "reason": self.reason,
        }


def shard_key(name: str) -> str:
    """Return the text that decides the shard of a trigger."""
    return f"trigger:{name}"


def read(tr: Reads, name: str) -> TriggerRecord | None:
    """Return a trigger's row; None when there is no such trigger."""
    row = tr.get(TRIGGERS.pack((name,)))
    return None if row is None else TriggerRecord(name, *versions.TRIGGER.unpack(row))


def write(tr: Transaction, trigger: TriggerRecord) -> None:
    """Write a trigger, in place of an earlier one of its name."""
    fields = [
        trigger.event,
        trigger.when,
        trigger.workflow,
        trigger.signal,
        trigger.to,
        trigger.created_ms,
        trigger.paused,
        trigger.runs,
        trigger.failed,
    ]
    tr.set(
        TRIGGERS.pack((trigger.name,)),
        versions.TRIGGER.pack([*fields, trigger.last_ms, trigger.last_run, trigger.reason]),
    )


def remove(tr: Transaction, name: str) -> None:
    """Remove the trigger of a name; do nothing when there is none."""
    tr.clear(TRIGGERS.pack((name,)))


def every(tr: Reads) -> list[TriggerRecord]:
    """Return all triggers, paused ones too, of which there are at most 1,000, sorted by name."""
    return [_unpack(pair) for pair in tr.get_range(*TRIGGERS.range())]


def list_triggers(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the triggers, sorted by name."""
    found, following = page_of(tr, TRIGGERS, (), body)
    return {"triggers": [_unpack(pair).as_json() for pair in found], "next": following}


def _unpack(pair: KeyValue) -> TriggerRecord:
    key, row = pair
    return TriggerRecord(str(TRIGGERS.unpack(key)[0]), *versions.TRIGGER.unpack(row))
