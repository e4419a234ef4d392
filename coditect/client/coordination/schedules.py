"""The part of a client that makes and manages schedules, each of which starts a workflow at its ticks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cached_property
from typing import Any, Self, TypedDict, Unpack

from coditect.client.control_plane import ControlPlane, pages
from coditect.model.duration import Duration, duration_text, milliseconds
from coditect.wire.control import Verb
from coditect.workflow import fields as workflow_fields
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.rows import read_row


@dataclass(frozen=True, slots=True)
class ScheduleRow:
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
    """The tick that was carried out last."""
    last_run: str | None
    """The id of the workflow that was started last."""
    runs: int
    skipped: int
    """The number of ticks that started nothing, because the workflow of an earlier tick still ran."""
    reason: str
    """Why the last tick started no workflow; empty when it did."""

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a schedule's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda given: cls(**{field.name: given[field.name] for field in fields(cls)}))


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule: its ticks, by `cron` or `every`, and what happens at overlaps and missed ticks."""

    cron: str
    """Five fields (minute hour day month weekday), or six with the seconds before them."""
    zone: str
    """The IANA time zone of a cron expression, such as Europe/Paris; default: UTC."""
    every: Duration
    """The period, at least 1 s; its ticks are the multiples of the period since the epoch."""
    jitter: Duration
    """The longest delay of a tick, different for each, at most 1 h; default: none."""
    overlap: str
    """While the workflow of an earlier tick runs: `allow` (default), `skip` the tick, or `cancel` the earlier one."""
    catch_up: str
    """After an outage of over 10 s: the `latest` missed tick runs (default), none (`skip`), or `all`."""
    most_missed: int
    """The largest number of missed ticks that `all` carries out, 1 to 1,000; default: 100."""
    paused: bool
    replace: bool
    """Whether a schedule of the name may be changed; default: it is refused."""


class Schedules:
    """The schedules that the control plane keeps."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def create(
        self, name: str, workflow: Workflow | Definition, value: Any = None, **options: Unpack[ScheduleOptions]
    ) -> ScheduleRow:
        """Make a schedule that starts a workflow with the input `value` at each tick, or with `replace` change it.

        `From("tick")` in the input is the tick as text, in the schedule's time zone. The control plane keeps the
        definition: what is changed in the caller's code later changes nothing until the schedule is replaced.

        Raises:
            InputError: when there is a schedule of the name, or an option is wrong.
            InvalidWorkflow: when the workflow is wrong.
        """
        definition = workflow.definition() if isinstance(workflow, Workflow) else workflow
        body: dict[str, Any] = {**options, "schedule": name, "workflow": to_document(definition)}
        for period in ("every", "jitter"):
            if isinstance(body.get(period), timedelta):
                body[period] = duration_text(milliseconds(body[period]))
        if value is not None:
            body["input"] = workflow_fields.template(value)
        return ScheduleRow.read(await self._control.ask(Verb.SCHEDULE_CREATE, body))

    async def list(self, *, most: int | None = None) -> AsyncIterator[ScheduleRow]:
        """Yield the schedules, sorted by name."""
        async for row in pages(self._control, Verb.SCHEDULE_LIST, "schedules", {}, most=most):
            yield ScheduleRow.read(row)

    async def show(self, name: str) -> dict[str, Any]:
        """Return the report of a schedule, with its `definition`, its `input` and the next five ticks as `upcoming`.

        Raises:
            NotFound: when there is no such schedule.
        """
        return await self._control.ask(Verb.SCHEDULE_SHOW, {"schedule": name})

    async def pause(self, name: str) -> ScheduleRow:
        """Pause a schedule: its ticks start nothing until it is resumed, and its running workflows go on."""
        return ScheduleRow.read(await self._control.ask(Verb.SCHEDULE_PAUSE, {"schedule": name}))

    async def resume(self, name: str) -> ScheduleRow:
        """Resume a paused schedule with its next tick; ticks during the pause are not made up for."""
        return ScheduleRow.read(await self._control.ask(Verb.SCHEDULE_RESUME, {"schedule": name}))

    async def run(self, name: str) -> str | None:
        """Start a schedule's workflow now, even if paused; return its id, or None if overlap or an error forbids it."""
        answer = await self._control.ask(Verb.SCHEDULE_RUN, {"schedule": name})
        return answer.get("workflow")

    async def delete(self, name: str) -> None:
        """Remove a schedule; the workflows that it started go on.

        Raises:
            NotFound: when there is no such schedule.
        """
        await self._control.ask(Verb.SCHEDULE_DELETE, {"schedule": name})


class ClientSchedules:
    """The mixin that gives `Client` its attribute `schedules`."""

    _control: ControlPlane

    @cached_property
    def schedules(self) -> Schedules:
        """The schedules that the control plane keeps: `client.schedules.create(...)`, `list()`, `pause(name)`, ..."""
        return Schedules(self._control)
