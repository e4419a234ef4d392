"""The routes of schedules and triggers: what starts workflows by the clock, and at events."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Required

from fastapi import Body
from pydantic import ConfigDict, Field, with_config

from coditect.api.routes.parameters import Cursor, Limit
from coditect.api.routes.workflows import WorkflowDefinition, read_definition
from coditect.api.services import Fleet, GuardedRouter
from coditect.client.listings import SCHEDULE_PAGES, TRIGGER_PAGES, ListingPage
from coditect.workflow.starters import Schedule, ScheduleOptions, Trigger, TriggerOptions

schedule_router = GuardedRouter(tags=["schedules and triggers"])


@with_config(ConfigDict(extra="forbid"))
class ScheduleRequest(ScheduleOptions, total=False):
    """A schedule to make: a workflow, its input, and when it starts again and again, by `cron` or `every`."""

    workflow: Required[WorkflowDefinition]
    input: Any


@with_config(ConfigDict(extra="forbid"))
class TriggerRequest(TriggerOptions, total=False):
    """A trigger to make: which events fit, and the workflow to start or the signal to send at each of them."""

    event: Required[Annotated[str, Field(examples=["repo.pushed"], max_length=200)]]
    workflow: WorkflowDefinition | None
    input: Annotated[Any, Field(description="The workflow's input, or the signal's value; default: the event.")]


@schedule_router.get("/schedules")
async def list_schedules(client: Fleet, cursor: Cursor = None, limit: Limit = 100) -> ListingPage[Schedule]:
    """List the schedules, each with its state and the time of its next start."""
    return await client.page(SCHEDULE_PAGES, {}, cursor=cursor, limit=limit)


@schedule_router.get("/schedules/{name}")
async def get_schedule(name: str, client: Fleet) -> dict[str, Any]:
    """Get a schedule with its workflow, the last workflow that it started, and the times of its next five starts."""
    return await client.schedules.get(name)


@schedule_router.put("/schedules/{name}")
async def create_schedule(name: str, order: Annotated[ScheduleRequest, Body()], client: Fleet) -> Schedule:
    """Make a schedule under a new name; with `replace`, also change the one that has the name."""
    options: dict[str, Any] = {**order}
    definition = read_definition(options.pop("workflow"))
    return await client.schedules.create(name, definition, **options)


@schedule_router.post("/schedules/{name}/pause")
async def pause_schedule(name: str, client: Fleet) -> Schedule:
    """Pause a schedule: it starts nothing until it is resumed."""
    return await client.schedules.pause(name)


@schedule_router.post("/schedules/{name}/resume")
async def resume_schedule(name: str, client: Fleet) -> Schedule:
    """Resume a paused schedule at its first time after now; starts missed in the pause are not made up."""
    return await client.schedules.resume(name)


@schedule_router.post("/schedules/{name}/run")
async def run_schedule(name: str, client: Fleet) -> dict[str, str | None]:
    """Start a schedule's workflow now, and return its id; null when `overlap` or an error prevents the start."""
    return {"workflow": await client.schedules.run(name)}


@schedule_router.delete("/schedules/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_schedule(name: str, client: Fleet) -> None:
    """Delete a schedule; the workflows that it started go on."""
    await client.schedules.delete(name)


@schedule_router.get("/triggers")
async def list_triggers(client: Fleet, cursor: Cursor = None, limit: Limit = 100) -> ListingPage[Trigger]:
    """List the triggers, each with the counts of its events and what came of them."""
    return await client.page(TRIGGER_PAGES, {}, cursor=cursor, limit=limit)


@schedule_router.put("/triggers/{name}")
async def create_trigger(name: str, order: Annotated[TriggerRequest, Body()], client: Fleet) -> Trigger:
    """Create a trigger that starts a workflow, or sends a signal, at each event that fits."""
    options: dict[str, Any] = {**order}
    event, document = options.pop("event"), options.pop("workflow", None)
    definition = None if document is None else read_definition(document)
    return await client.triggers.create(name, event, definition, **options)


@schedule_router.post("/triggers/{name}/pause")
async def pause_trigger(name: str, client: Fleet) -> Trigger:
    """Pause a trigger: events until it is resumed, and those that wait for it now, start nothing."""
    return await client.triggers.pause(name)


@schedule_router.post("/triggers/{name}/resume")
async def resume_trigger(name: str, client: Fleet) -> Trigger:
    """Resume a trigger with the events from now on."""
    return await client.triggers.resume(name)


@schedule_router.delete("/triggers/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_trigger(name: str, client: Fleet) -> None:
    """Delete a trigger; the workflows that it started go on."""
    await client.triggers.delete(name)


routers = (schedule_router,)
