"""The queries about schedules: a page of all of them, and one with its workflow and its next ticks."""

from __future__ import annotations

from typing import Any

from coditect.errors import NotFound
from dispatcher.coordination import orders
from dispatcher.coordination import schedule_rows as rows
from dispatcher.ledger.keyspace import SCHEDULES
from dispatcher.ledger.workflows.queries import Body, page_of
from dispatcher.ledger.workflows.submit import text
from dispatcher.store.transaction import Reads

UPCOMING = 5
"""The number of a schedule's next ticks that `show_schedule` tells."""


def list_schedules(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the schedules, by name."""
    found, following = page_of(tr, SCHEDULES, (), body)
    schedules = [rows.unpack(str(SCHEDULES.unpack(key)[0]), row) for key, row in found]
    return {"schedules": [one.as_json() for one in schedules], "next": following}


def show_schedule(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one schedule, with its workflow, the workflow's input, and its next ticks.

    Raises:
        NotFound: when there is no such schedule.
    """
    name = text(body, "schedule")
    record = rows.read(tr, name)
    if record is None:
        raise NotFound("There is no such schedule", schedule=name, fix="coditect schedule list")
    upcoming: list[str] = []
    tick_ms = record.next_ms
    while tick_ms is not None and len(upcoming) < UPCOMING:
        upcoming.append(record.ticks.local(tick_ms))
        tick_ms = record.ticks.after(tick_ms)
    order = orders.read(tr, name, rows.BY)
    definition = {field: order.get(field) for field in ("name", "description", "nodes")}
    return record.as_json() | {"upcoming": upcoming, "definition": definition, "input": order.get("input")}
