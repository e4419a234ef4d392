"""Schedules and triggers, as a client makes, reads and changes them: they start workflows by the clock or at events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Unpack

from coditect.messaging.control_plane import ControlPlane, pages
from coditect.model.option import wire_options
from coditect.wire.control import Verb
from coditect.workflow import fields as workflow_fields
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.starters import Schedule, ScheduleOptions, Trigger, TriggerOptions


class Schedules:
    """The schedules that the control plane keeps."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def create(
        self, name: str, workflow: Workflow | Definition, input: Any = None, **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """Make a schedule that starts a workflow with `input` at each tick, or with `replace` change it.

        `From("tick")` in the input is the tick as text, in the schedule's time zone. The control plane keeps the
        definition: what is changed in the caller's code later changes nothing until the schedule is replaced.

        Raises:
            InputError: when there is a schedule of the name, or an option is wrong.
            InvalidWorkflow: when the workflow is wrong.
        """
        definition = workflow.definition() if isinstance(workflow, Workflow) else workflow
        body = wire_options(options) | {"schedule": name, "workflow": to_document(definition)}
        if input is not None:
            body["input"] = workflow_fields.template(input)
        return Schedule.read(await self._control.ask(Verb.SCHEDULE_CREATE, body))

    async def list(self, *, limit: int | None = None) -> AsyncIterator[Schedule]:
        """Yield the schedules, sorted by name."""
        async for row in pages(self._control, Verb.SCHEDULE_LIST, "schedules", {}, limit=limit):
            yield Schedule.read(row)

    async def get(self, name: str) -> dict[str, Any]:
        """Return the report of a schedule, with its `definition`, its `input` and the next five ticks as `upcoming`.

        Raises:
            NotFound: when there is no such schedule.
        """
        return await self._control.ask(Verb.SCHEDULE_SHOW, {"schedule": name})

    async def pause(self, name: str) -> Schedule:
        """Pause a schedule: its ticks start nothing until it is resumed, and its running workflows go on."""
        return Schedule.read(await self._control.ask(Verb.SCHEDULE_PAUSE, {"schedule": name}))

    async def resume(self, name: str) -> Schedule:
        """Resume a paused schedule with its next tick; ticks during the pause are not made up for."""
        return Schedule.read(await self._control.ask(Verb.SCHEDULE_RESUME, {"schedule": name}))

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


class Triggers:
    """The triggers that the control plane keeps."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def create(
        self,
        name: str,
        event: str,
        workflow: Workflow | Definition | None = None,
        input: Any = None,
        **options: Unpack[TriggerOptions],
    ) -> Trigger:
        """Make a trigger that starts a workflow with `input`, or sends a signal, at each event that fits it.

        `event` is a topic pattern, such as `repo.pushed` or `repo.*`. `From("event.data.repo")` in the input is a part
        of the event; without an input, it is the event. The control plane keeps the definition, and waits for the
        events from the return of the call on. With `signal` and `to` each event sends a signal whose value is `input`.

        Raises:
            InputError: when there is a trigger of the name, or an option is wrong.
            InvalidWorkflow: when the workflow is wrong.
        """
        body: dict[str, Any] = {"trigger": name, "event": event, **options}
        for expression in ("when", "to"):
            if expression in options:
                body[expression] = workflow_fields.expression(body[expression])
        if workflow is not None:
            body["workflow"] = to_document(workflow.definition() if isinstance(workflow, Workflow) else workflow)
        if input is not None:
            body["input"] = workflow_fields.template(input)
        return Trigger.read(await self._control.ask(Verb.TRIGGER_ADD, body))

    async def list(self, *, limit: int | None = None) -> AsyncIterator[Trigger]:
        """Yield the triggers, sorted by name."""
        async for row in pages(self._control, Verb.TRIGGER_LIST, "triggers", {}, limit=limit):
            yield Trigger.read(row)

    async def pause(self, name: str) -> Trigger:
        """Pause a trigger: until it is resumed it ignores events, also those that wait in its queue."""
        return Trigger.read(await self._control.ask(Verb.TRIGGER_PAUSE, {"trigger": name}))

    async def resume(self, name: str) -> Trigger:
        """Resume a paused trigger, for the events from now on."""
        return Trigger.read(await self._control.ask(Verb.TRIGGER_RESUME, {"trigger": name}))

    async def delete(self, name: str) -> None:
        """Delete a trigger with the events that wait for it; the workflows that it started go on.

        Raises:
            NotFound: when there is no such trigger.
        """
        await self._control.ask(Verb.TRIGGER_REMOVE, {"trigger": name})
