"""Schedules and triggers, which start workflows by the clock and at events: their options and the control plane's rows.

Each option is declared here alone: client, command line, HTTP API, control plane and docs read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from coditect.model.duration import Duration
from coditect.model.option import Option
from coditect.model.row import Row
from coditect.workflow.definition import From


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule: its ticks, by `cron` or `every`, and what happens at overlaps and missed ticks."""

    cron: Annotated[
        str,
        Option(
            "Minute, hour, day, month and weekday; six fields begin with the seconds.", high=200, example="30 2 * * *"
        ),
    ]
    zone: Annotated[str, Option("The IANA time zone of `cron`.", "UTC", high=100, example="Europe/Paris")]
    every: Annotated[
        Duration,
        Option("A period in place of `cron`; its ticks are its multiples since 1970, in UTC.", low="1s", example="30s"),
    ]
    jitter: Annotated[
        Duration, Option("Each tick comes later by a part of it, the same part at each look.", high="1h", example="1m")
    ]
    overlap: Annotated[
        Literal["allow", "skip", "cancel"],
        Option("While an earlier workflow runs, start another, skip the tick, or cancel the earlier one.", "allow"),
    ]
    catch_up: Annotated[
        Literal["latest", "skip", "all"],
        Option("Of the ticks missed in an outage, run the latest, none, or all, the oldest first.", "latest"),
    ]
    most_missed: Annotated[
        int, Option("How many missed ticks `all` makes up for: the latest ones.", 100, low=1, high=1_000)
    ]
    paused: Annotated[bool, Option("Make it, and start nothing yet.", False)]
    replace: Annotated[bool, Option("Change the schedule of the name; its counts stay.", False)]


@dataclass(frozen=True, slots=True)
class Schedule(Row):
    """The report of one schedule: its declaration, its next and last tick, and the workflow that it started last."""

    schedule: str
    """The schedule's name."""
    workflow: str
    """The name of the workflow that each tick starts."""
    state: str
    """`active` or `paused`."""
    cron: str | None
    zone: str | None
    every_ms: int | None
    jitter_ms: int
    overlap: str
    catch_up: str
    most_missed: int
    created_at: int
    """The instant at which the schedule was made, in milliseconds since the epoch."""
    next: int | None
    """The next tick; None of a paused schedule."""
    last: int | None
    """The tick that was due last, whether it started a workflow or was skipped for overlap."""
    last_run: str | None
    """The id of the workflow that was started last."""
    runs: int
    skipped: int
    """The number of ticks and ordered runs that started nothing, since an earlier workflow still ran."""
    reason: str
    """Why the last tick started no workflow; empty when it did."""


class TriggerOptions(TypedDict, total=False):
    """The options of a trigger; the expressions see the `event`: type, source, id, subject, time_ms and data."""

    when: Annotated[
        str | From,
        Option(
            "An expression; an event for which it is null, false or empty starts nothing.", example="event.data.urgent"
        ),
    ]
    signal: Annotated[str, Option("A signal to send, in place of a workflow to start.", high=200)]
    to: Annotated[str | From, Option("The expression for the id of the signal's workflow.", example="event.data.order")]
    paused: Annotated[bool, Option("Make it, and start nothing yet.", False)]


@dataclass(frozen=True, slots=True)
class Trigger(Row):
    """The report of one trigger: its declaration, and how many workflows or signals its events led to."""

    trigger: str
    """The trigger's name."""
    event: str
    """The topic pattern of the events' types."""
    when: str | None
    """The expression that an event must fulfil; None for every event."""
    workflow: str | None
    """The name of the workflow that each event starts; None for a trigger that sends a signal."""
    signal: str | None
    """The name of the signal that each event sends; None for a trigger that starts a workflow."""
    to: str | None
    """The expression that finds the id of the signal's workflow in the event."""
    state: str
    """`active` or `paused`."""
    created_at: int
    """The instant at which the trigger was made, in milliseconds since the epoch."""
    runs: int
    """The number of workflows that were started, or of signals that were sent."""
    failed: int
    """The number of events from which nothing could be started."""
    last: int | None
    """The instant of the last event that started or sent something."""
    last_run: str | None
    """The id of the workflow that was started, or sent a signal, last."""
    reason: str
    """Why the last event that failed did; empty when a later one did not."""
