"""The list of locks: all lock requests, held and waiting, by resource and in order of arrival."""

from __future__ import annotations

from typing import Any

from coditect.errors import InvalidTask
from coditect.wire.json import dumps, loads
from dispatcher.coordination import lock_rows as rows
from dispatcher.ledger.keyspace import LOCK_QUEUES, LOCKS
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.store.transaction import Reads

MOST_AT_ONCE = 500


def list_locks(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the lock requests, held or waiting (these with fence 0), at all resources or one `resource`."""
    of = (text(body, "resource"),) if body.get("resource") else ()
    begin, end = LOCK_QUEUES.range(of)
    if body.get("after"):
        begin = LOCK_QUEUES.pack(_cursor(text(body, "after"))) + b"\0"
    limit = min(number(body, "limit", MOST_AT_ONCE), MOST_AT_ONCE)
    found = tr.get_range(begin, end, limit=limit)
    keys = [LOCK_QUEUES.unpack(key) for key, _ in found]
    tickets = [rows.place(row).ticket for row in found]
    kept = tr.get_many([LOCKS.pack((ticket,)) for ticket in tickets])
    shown = [
        _shown(resource, rows.unpack(ticket, row))
        for (resource, _), ticket, row in zip(keys, tickets, kept, strict=True)
        if row is not None
    ]
    return {"locks": shown, "next": dumps(list(keys[-1])).decode() if len(found) == limit else None}


def _cursor(after: str) -> tuple[str, int]:
    match loads(after.encode()):
        case [str(resource), int(place)]:
            return resource, place
    raise InvalidTask("This is no place in a list of locks", field="after")


def _shown(resource: str, ticket: rows.Ticket) -> dict[str, Any]:
    return {
        "resource": resource,
        "state": "held" if ticket.fence else "waiting",
        "mode": ticket.mode,
        "fence": ticket.fence,
        "agent": ticket.agent,
        "task": ticket.task,
        "begun_ms": ticket.begun_ms,
        "expires_ms": ticket.expires_ms,
        "ticket": ticket.id,
    }
