"""The row of a schedule in the store, and the queries that list and show schedules."""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import Any

from coditect.errors import NotFound
from coditect.workflow.starters import Schedule
from dispatcher.coordination import orders
from dispatcher.coordination.ticks import Ticks
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import SCHEDULES
from dispatcher.ledger.workflows.queries import Body, page_of
from dispatcher.ledger.workflows.submit import text
from dispatcher.store.transaction import Reads, Transaction

BY = "schedule"
"""The kind of the stored value that holds the request to start a schedule's workflow."""
UPCOMING = 5
"""The number of a schedule's next ticks that `show_schedule` tells."""


def ticks_of(schedule: Schedule) -> Ticks:
    """Return the ticks that a schedule declares."""
    return Ticks(schedule.cron or "", schedule.zone or "UTC", schedule.every_ms or 0, schedule.jitter_ms)


def read(tr: Reads, name: str) -> Schedule | None:
    """Return a schedule's row; None when there is no such schedule."""
    row = tr.get(SCHEDULES.pack((name,)))
    return None if row is None else unpack(name, row)


def find(tr: Reads, body: Body) -> Schedule:
    """Return the row of the schedule that a request names.

    Raises:
        NotFound: when there is no such schedule.
    """
    name = text(body, "schedule")
    schedule = read(tr, name)
    if schedule is None:
        raise NotFound("There is no such schedule", schedule=name, fix="coditect schedule list")
    return schedule


def unpack(name: str, row: bytes) -> Schedule:
    """Decode a schedule's row in the store."""
    return Schedule(name, *versions.SCHEDULE.unpack(row))


def write(tr: Transaction, schedule: Schedule) -> None:
    """Write a schedule, in place of an earlier one of its name."""
    tr.set(SCHEDULES.pack((schedule.schedule,)), versions.SCHEDULE.pack_as(2, astuple(schedule)[1:]))


def remove(tr: Transaction, name: str) -> None:
    """Remove a schedule's row, and the stored request that starts its workflow."""
    tr.clear(SCHEDULES.pack((name,)))
    orders.clear(tr, name, BY)


def list_schedules(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the schedules, sorted by name."""
    found, following = page_of(tr, SCHEDULES, (), body)
    schedules = [unpack(str(SCHEDULES.unpack(key)[0]), row) for key, row in found]
    return {"schedules": [asdict(schedule) for schedule in schedules], "next": following}


def show_schedule(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one schedule, with the definition and the input of its workflow, and its next ticks.

    Raises:
        NotFound: when there is no such schedule.
    """
    schedule = find(tr, body)
    ticks, tick_ms, upcoming = ticks_of(schedule), schedule.next, list[str]()
    while tick_ms is not None and len(upcoming) < UPCOMING:
        upcoming.append(ticks.local(tick_ms))
        tick_ms = ticks.after(tick_ms)
    order = orders.read(tr, schedule.schedule, BY)
    definition = {field: order.get(field) for field in ("name", "description", "nodes")}
    return asdict(schedule) | {"upcoming": upcoming, "definition": definition, "input": order.get("input")}
