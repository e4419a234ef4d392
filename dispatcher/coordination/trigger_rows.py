"""The rows of the triggers in the store."""

from __future__ import annotations

from coditect.wire.control import Verb
from coditect.workflow.starters import Trigger
from dispatcher.coordination.table import Table
from dispatcher.ledger import keyspace, versions

TRIGGERS = Table(keyspace.TRIGGERS, versions.TRIGGER, Trigger)
"""The triggers by name, paused ones, too; at most 1,000."""
BY = "trigger"
"""The kind of the stored value that holds the request to start a trigger's workflow, or its signal's value."""
CHANGES: frozenset[str] = frozenset({Verb.TRIGGER_ADD, Verb.TRIGGER_PAUSE, Verb.TRIGGER_RESUME, Verb.TRIGGER_REMOVE})
"""The verbs after which a trigger's queue is to be made or deleted."""


def shard_key(name: str) -> str:
    """Return the text that decides the shard of a trigger."""
    return f"trigger:{name}"
