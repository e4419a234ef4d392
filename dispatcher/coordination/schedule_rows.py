"""The row of a schedule in the store, and the workflow that it starts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dispatcher.coordination import orders
from dispatcher.coordination.ticks import CatchUp, Ticks
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import SCHEDULES
from dispatcher.store.transaction import Reads, Transaction

BY = "schedule"
"""The kind under which a schedule's workflow is kept."""


class Overlap(StrEnum):
    """The policy for a tick that comes while the workflow of an earlier tick still runs."""

    ALLOW = "allow"
    SKIP = "skip"
    CANCEL = "cancel"
    """The earlier workflow is canceled, and the tick starts its own."""


@dataclass(slots=True)
class ScheduleRecord:
    """The row of a schedule: how it was declared, its next tick, and what came of the last one."""

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
    """The tick that was carried out last."""
    last_run: str = ""
    """The id of the workflow that was started last."""
    runs: int = 0
    skipped: int = 0
    """The number of ticks that started nothing because the workflow of an earlier one still ran."""
    reason: str = ""
    """Why the last tick started no workflow; empty when it did."""

    def as_json(self) -> dict[str, Any]:
        """Return the schedule as an answer to a request has it."""
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


def unpack(name: str, row: bytes) -> ScheduleRecord:
    """Decode a schedule's row in the store."""
    cron, zone, every_ms, jitter_ms, overlap, catch_up, *others = versions.SCHEDULE.unpack(row)
    return ScheduleRecord(name, Ticks(cron, zone, every_ms, jitter_ms), Overlap(overlap), CatchUp(catch_up), *others)


def write(tr: Transaction, one: ScheduleRecord) -> None:
    """Write a schedule, in place of an earlier one of its name."""
    ticks = one.ticks
    fields = [ticks.cron, ticks.zone, ticks.every_ms, ticks.jitter_ms, one.overlap.value, one.catch_up.value]
    fields += [one.most_missed, one.workflow, one.created_ms, one.next_ms, one.paused, one.last_ms, one.last_run]
    tr.set(SCHEDULES.pack((one.name,)), versions.SCHEDULE.pack([*fields, one.runs, one.skipped, one.reason]))


def remove(tr: Transaction, name: str) -> None:
    """Remove a schedule's row and its workflow."""
    tr.clear(SCHEDULES.pack((name,)))
    orders.clear(tr, name, BY)
