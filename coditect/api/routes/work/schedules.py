"""The routes of schedules and triggers: what starts workflows by the clock, and at events."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal, cast

from fastapi import APIRouter
from pydantic import Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, Cursor, Limit, Span
from coditect.api.routes.work.workflows import WorkflowDefinition, definition_of
from coditect.api.services import Services, needs
from coditect.client.coordination.schedules import ScheduleOptions, ScheduleRow
from coditect.client.coordination.triggers import TriggerOptions, TriggerRow
from coditect.client.listings import SCHEDULES, TRIGGERS, ListingPage
from coditect.operations.coordination import schedules, triggers
from coditect.operations.coordination.schedules import ScheduleSteer

router = APIRouter(tags=["schedules and triggers"])
steered = APIRouter(tags=["schedules and triggers"], dependencies=[needs(Role.OPERATOR)])


class ScheduleRequest(ApiRequest):
    """A schedule to make: a workflow, its input, and when it starts again and again, by `cron` or `every`."""

    workflow: WorkflowDefinition
    input: Any = None
    cron: str | None = Field(default=None, examples=["30 2 * * *"], max_length=200)
    zone: str | None = Field(default=None, examples=["Europe/Paris"], max_length=100)
    every: Span | None = None
    jitter: Span | None = None
    overlap: Literal["allow", "skip", "cancel"] = "allow"
    catch_up: Literal["latest", "skip", "all"] = "latest"
    most_missed: int = Field(default=100, ge=1, le=1_000)
    paused: bool = False
    replace: bool = Field(default=False, description="Whether a schedule of the name may be changed.")

    def options(self) -> ScheduleOptions:
        """Return the schedule's options: the request's fields but the workflow, the input and those that are None."""
        return cast(ScheduleOptions, self.model_dump(exclude={"workflow", "input"}, exclude_none=True))


class TriggerRequest(ApiRequest):
    """A trigger to make: which events fit, and the workflow to start or the signal to send at each of them."""

    event: str = Field(examples=["repo.pushed"], max_length=200)
    workflow: WorkflowDefinition | None = None
    input: Any = Field(default=None, description="The workflow's input, or the signal's value; default: the event.")
    when: str | None = Field(default=None, description="An expression that the event must fulfil.")
    signal: str | None = Field(default=None, description="The signal to send, in place of a workflow.")
    to: str | None = Field(default=None, description="The expression for the id of the signal's workflow.")
    paused: bool = False

    def options(self) -> TriggerOptions:
        """Return those of the fields `when`, `signal`, `to` and `paused` that are not None, as trigger options."""
        return cast(TriggerOptions, self.model_dump(include={"when", "signal", "to", "paused"}, exclude_none=True))


@router.get("/schedules")
async def list_schedules(services: Services, cursor: Cursor = None, limit: Limit = 100) -> ListingPage[ScheduleRow]:
    """List the schedules, each with its state and the time of its next start."""
    async with services.opened.fleet() as client:
        return await client.page(SCHEDULES, {}, cursor=cursor, limit=limit)


@router.get("/schedules/{name}")
async def show_schedule(name: str, services: Services) -> dict[str, Any]:
    """Show a schedule with its workflow, the last workflow that it started, and the times of its next five starts."""
    return await schedules.show_schedule(services.opened, name)


@steered.put("/schedules/{name}")
async def create_schedule(name: str, order: ScheduleRequest, services: Services) -> ScheduleRow:
    """Make a schedule under a new name; with `replace`, also change the one that has the name."""
    definition = definition_of(order.workflow)
    return await schedules.create_schedule(services.opened, name, definition, order.input, order.options())


@steered.post("/schedules/{name}/pause")
async def pause_schedule(name: str, services: Services) -> ScheduleRow:
    """Pause a schedule: it starts nothing until it is resumed."""
    return await schedules.steer_schedule(services.opened, name, ScheduleSteer.PAUSE)


@steered.post("/schedules/{name}/resume")
async def resume_schedule(name: str, services: Services) -> ScheduleRow:
    """Resume a paused schedule at its first time after now; starts missed in the pause are not made up."""
    return await schedules.steer_schedule(services.opened, name, ScheduleSteer.RESUME)


@steered.post("/schedules/{name}/run")
async def run_schedule(name: str, services: Services) -> dict[str, str | None]:
    """Start a schedule's workflow now, and return its id; null when `overlap` or an error prevents the start."""
    return {"workflow": await schedules.run_schedule(services.opened, name)}


@steered.delete("/schedules/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_schedule(name: str, services: Services) -> None:
    """Delete a schedule; the workflows that it started go on."""
    await schedules.delete_schedule(services.opened, name)


@router.get("/triggers")
async def list_triggers(services: Services, cursor: Cursor = None, limit: Limit = 100) -> ListingPage[TriggerRow]:
    """List the triggers, each with the counts of its events and what came of them."""
    async with services.opened.fleet() as client:
        return await client.page(TRIGGERS, {}, cursor=cursor, limit=limit)


@steered.put("/triggers/{name}")
async def create_trigger(name: str, order: TriggerRequest, services: Services) -> TriggerRow:
    """Create a trigger that starts a workflow, or sends a signal, at each event that fits."""
    definition = None if order.workflow is None else definition_of(order.workflow)
    return await triggers.create_trigger(
        services.opened, name, order.event, definition=definition, value=order.input, options=order.options()
    )


@steered.post("/triggers/{name}/pause")
async def pause_trigger(name: str, services: Services) -> TriggerRow:
    """Pause a trigger: events until it is resumed, and those that wait for it now, start nothing."""
    return await triggers.steer_trigger(services.opened, name, paused=True)


@steered.post("/triggers/{name}/resume")
async def resume_trigger(name: str, services: Services) -> TriggerRow:
    """Resume a trigger with the events from now on."""
    return await triggers.steer_trigger(services.opened, name, paused=False)


@steered.delete("/triggers/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_trigger(name: str, services: Services) -> None:
    """Delete a trigger; the workflows that it started go on."""
    await triggers.delete_trigger(services.opened, name)
