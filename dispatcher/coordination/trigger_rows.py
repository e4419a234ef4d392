"""The row of a trigger in the store, and the queries that list and read triggers."""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import Any

from coditect.wire.control import Verb
from coditect.workflow.starters import Trigger
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import TRIGGERS
from dispatcher.ledger.workflows.queries import Body, page_of
from dispatcher.store.transaction import KeyValue, Reads, Transaction

BY = "trigger"
"""The kind of the stored value that holds the request to start a trigger's workflow, or its signal's value."""
CHANGES: frozenset[str] = frozenset({Verb.TRIGGER_ADD, Verb.TRIGGER_PAUSE, Verb.TRIGGER_RESUME, Verb.TRIGGER_REMOVE})
"""The verbs after which a trigger's queue is to be made or deleted."""


def shard_key(name: str) -> str:
    """Return the text that decides the shard of a trigger."""
    return f"trigger:{name}"


def read(tr: Reads, name: str) -> Trigger | None:
    """Return a trigger's row; None when there is no such trigger."""
    row = tr.get(TRIGGERS.pack((name,)))
    return None if row is None else Trigger(name, *versions.TRIGGER.unpack(row))


def write(tr: Transaction, trigger: Trigger) -> None:
    """Write a trigger, in place of an earlier one of its name."""
    tr.set(TRIGGERS.pack((trigger.trigger,)), versions.TRIGGER.pack(astuple(trigger)[1:]))


def remove(tr: Transaction, name: str) -> None:
    """Remove the trigger of a name; do nothing when there is none."""
    tr.clear(TRIGGERS.pack((name,)))


def every(tr: Reads) -> list[Trigger]:
    """Return all triggers, paused ones too, of which there are at most 1,000, sorted by name."""
    return [_unpack(pair) for pair in tr.get_range(*TRIGGERS.range())]


def list_triggers(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the triggers, sorted by name."""
    found, following = page_of(tr, TRIGGERS, (), body)
    return {"triggers": [asdict(_unpack(pair)) for pair in found], "next": following}


def _unpack(pair: KeyValue) -> Trigger:
    key, row = pair
    return Trigger(str(TRIGGERS.unpack(key)[0]), *versions.TRIGGER.unpack(row))
