"""The row of a schedule in the store, and the queries that list and show schedules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from coditect.errors import NotFound
from dispatcher.coordination import orders
from dispatcher.coordination.ticks import CatchUp, Ticks
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import SCHEDULES
from dispatcher.ledger.workflows.queries import Body, page_of
from dispatcher.ledger.workflows.submit import text
from dispatcher.store.transaction import Reads, Transaction

BY = "schedule"
"""The kind of the stored value that holds the request to start a schedule's workflow."""
UPCOMING = 5
"""The number of a schedule's next ticks that `show_schedule` tells."""


class Overlap(StrEnum):
    """The policy for a tick that comes while the workflow of an earlier tick still runs."""

    ALLOW = "allow"
    SKIP = "skip"
    CANCEL = "cancel"
    """The earlier workflow is canceled, and the tick starts its own."""


@dataclass(slots=True)
class ScheduleRecord:
    """The row of a schedule: how it was declared, its next tick, and the outcome of its last tick."""

    name: str
    ticks: Ticks
    overlap: Overlap
    catch_up: CatchUp
    most_missed: int
    """The largest number of missed ticks that catch-up policy `all` carries out."""
    workflow: str
    """The name of the workflow that each tick starts."""
    created_ms: int
    next_ms: int | None = None
    """The next tick; None while the schedule is paused, or when no tick is left."""
    paused: bool = False
    last_ms: int | None = None
    """The tick that was due last, whether it started a workflow or was skipped for overlap."""
    last_run: str = ""
    """The id of the workflow that was started last."""
    runs: int = 0
    skipped: int = 0
    """The number of ticks and ordered runs that started nothing because the workflow of an earlier one still ran."""
    reason: str = ""
    """Why the last tick started no workflow; empty when it did."""

    def as_json(self) -> dict[str, Any]:
        """Return the schedule as JSON values for answers to requests."""
        ticks = self.ticks
        return {
            "schedule": self.name,
            "cron": ticks.cron or None,
            "zone": ticks.zone if ticks.cron else None,
            "every_ms": ticks.every_ms or None,
            "jitter_ms": ticks.jitter_ms,
            "overlap": self.overlap.value,
            "catch_up": self.catch_up.value,
            "most_missed": self.most_missed,
            "workflow": self.workflow,
            "state": "paused" if self.paused else "active",
            "created_at": self.created_ms,
            "next": self.next_ms,
            "last": self.last_ms,
            "last_run": self.last_run or None,
            "runs": self.runs,
            "skipped": self.skipped,
            "reason": self.reason,
        }


def read(tr: Reads, name: str) -> ScheduleRecord | None:
    """Return a schedule's row; None when there is no such schedule."""
    row = tr.get(SCHEDULES.pack((name,)))
    return None if row is None else unpack(name, row)


def find(tr: Reads, body: Body) -> ScheduleRecord:
    """Return the row of the schedule that a request names.

    Raises:
        NotFound: when there is no such schedule.
    """
    name = text(body, "schedule")
    record = read(tr, name)
    if record is None:
        raise NotFound("There is no such schedule", schedule=name, fix="coditect schedule list")
    return record


def unpack(name: str, row: bytes) -> ScheduleRecord:
    """Decode a schedule's row in the store."""
    cron, zone, every_ms, jitter_ms, overlap, catch_up, *others = versions.SCHEDULE.unpack(row)
    return ScheduleRecord(name, Ticks(cron, zone, every_ms, jitter_ms), Overlap(overlap), CatchUp(catch_up), *others)


def write(tr: Transaction, schedule: ScheduleRecord) -> None:
    """Write a schedule, in place of an earlier one of its name."""
    ticks = schedule.ticks
    fields = [ticks.cron, ticks.zone, ticks.every_ms, ticks.jitter_ms, schedule.overlap.value, schedule.catch_up.value]
    fields += [
        schedule.most_missed,
        schedule.workflow,
        schedule.created_ms,
        schedule.next_ms,
        schedule.paused,
        schedule.last_ms,
        schedule.last_run,
    ]
    tr.set(
        SCHEDULES.pack((schedule.name,)),
        versions.SCHEDULE.pack([*fields, schedule.runs, schedule.skipped, schedule.reason]),
    )


def remove(tr: Transaction, name: str) -> None:
    """Remove a schedule's row, and the stored request that starts its workflow."""
    tr.clear(SCHEDULES.pack((name,)))
    orders.clear(tr, name, BY)


def list_schedules(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the schedules, sorted by name."""
    found, following = page_of(tr, SCHEDULES, (), body)
    schedules = [unpack(str(SCHEDULES.unpack(key)[0]), row) for key, row in found]
    return {"schedules": [schedule.as_json() for schedule in schedules], "next": following}


def show_schedule(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one schedule, with the definition and the input of its workflow, and its next ticks.

    Raises:
        NotFound: when there is no such schedule.
    """
    record = find(tr, body)
    upcoming: list[str] = []
    tick_ms = record.next_ms
    while tick_ms is not None and len(upcoming) < UPCOMING:
        upcoming.append(record.ticks.local(tick_ms))
        tick_ms = record.ticks.after(tick_ms)
    order = orders.read(tr, record.name, BY)
    definition = {field: order.get(field) for field in ("name", "description", "nodes")}
    return record.as_json() | {"upcoming": upcoming, "definition": definition, "input": order.get("input")}
