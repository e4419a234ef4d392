"""Use cases for schedules: make, list, show, pause, resume, run and delete them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from coditect.client.coordination.schedules import ScheduleOptions, ScheduleRow
from coditect.operations.connections import Connections
from coditect.workflow.definition import Definition


class ScheduleSteer(StrEnum):
    """An operator's action on a schedule: pause or resume."""

    PAUSE = "pause"
    RESUME = "resume"


async def create_schedule(
    opened: Connections, name: str, definition: Definition, value: Any, options: ScheduleOptions
) -> ScheduleRow:
    """Make a schedule that starts a workflow at each of its instants (ticks), or replace it if the options say so."""
    async with opened.fleet() as client:
        return await client.schedules.create(name, definition, value, **options)


async def list_schedules(opened: Connections, *, most: int) -> list[ScheduleRow]:
    """Return at most `most` schedules, sorted by name."""
    async with opened.fleet() as client:
        return [row async for row in client.schedules.list(most=most)]


async def show_schedule(opened: Connections, name: str) -> dict[str, Any]:
    """Return the fields of one schedule, with its workflow, its input and its next ticks."""
    async with opened.fleet() as client:
        return await client.schedules.show(name)


async def steer_schedule(opened: Connections, name: str, what: ScheduleSteer) -> ScheduleRow:
    """Pause or resume a schedule, and return the control plane's report of it afterwards."""
    async with opened.fleet() as client:
        match what:
            case ScheduleSteer.PAUSE:
                return await client.schedules.pause(name)
            case ScheduleSteer.RESUME:
                return await client.schedules.resume(name)


async def run_schedule(opened: Connections, name: str) -> str | None:
    """Start a schedule's workflow now; return its id, or None if its rule for overlaps, or an error, prevents it."""
    async with opened.fleet() as client:
        return await client.schedules.run(name)


async def delete_schedule(opened: Connections, name: str) -> None:
    """Remove a schedule; the workflows that it started go on."""
    async with opened.fleet() as client:
        await client.schedules.delete(name)
