"""The part of a client that makes and manages triggers, which start a workflow or send a signal at each event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self, TypedDict, Unpack

from coditect.client.control_plane import ControlPlane, pages
from coditect.wire.control import Verb
from coditect.workflow import fields as workflow_fields
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.reference import From
from coditect.workflow.rows import read_row


@dataclass(frozen=True, slots=True)
class TriggerRow:
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

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a trigger's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda given: cls(**{field.name: given[field.name] for field in fields(cls)}))


class TriggerOptions(TypedDict, total=False):
    """The options of a trigger; the expressions see the `event`: type, source, id, subject, time_ms and data."""

    when: str | From
    """An expression; an event for which its result is null, false or empty starts nothing."""
    signal: str
    """The name of a signal to send, in place of a workflow to start."""
    to: str | From
    """The expression that finds the id of the signal's workflow in the event."""
    paused: bool


class Triggers:
    """The triggers that the control plane keeps."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def create(
        self,
        name: str,
        event: str,
        workflow: Workflow | Definition | None = None,
        value: Any = None,
        **options: Unpack[TriggerOptions],
    ) -> TriggerRow:
        """Make a trigger that starts a workflow with the input `value`, or sends a signal, at each event that fits it.

        `event` is a topic pattern, such as `repo.pushed` or `repo.*`. `From("event.data.repo")` in the input is a part
        of the event; without an input, it is the event. The control plane keeps the definition, and waits for the
        events from the return of the call on. With `signal` and `to` each event sends a signal whose value is `value`.

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
        if value is not None:
            body["input"] = workflow_fields.template(value)
        return TriggerRow.read(await self._control.ask(Verb.TRIGGER_ADD, body))

    async def list(self, *, most: int | None = None) -> AsyncIterator[TriggerRow]:
        """Yield the triggers, sorted by name."""
        async for row in pages(self._control, Verb.TRIGGER_LIST, "triggers", {}, most=most):
            yield TriggerRow.read(row)

    async def pause(self, name: str) -> TriggerRow:
        """Pause a trigger: until it is resumed it ignores events, also those that wait in its queue."""
        return TriggerRow.read(await self._control.ask(Verb.TRIGGER_PAUSE, {"trigger": name}))

    async def resume(self, name: str) -> TriggerRow:
        """Resume a paused trigger, for the events from now on."""
        return TriggerRow.read(await self._control.ask(Verb.TRIGGER_RESUME, {"trigger": name}))

    async def delete(self, name: str) -> None:
        """Delete a trigger with the events that wait for it; the workflows that it started go on.

        Raises:
            NotFound: when there is no such trigger.
        """
        await self._control.ask(Verb.TRIGGER_REMOVE, {"trigger": name})

    add, remove = create, delete
    """The earlier words for `create` and `delete`."""


class ClientTriggers:
    """The mixin that gives `Client` its attribute `triggers`."""

    _control: ControlPlane

    @cached_property
    def triggers(self) -> Triggers:
        """The triggers that the control plane keeps: `client.triggers.create(...)`, `list()`, `pause(name)`, ..."""
        return Triggers(self._control)
