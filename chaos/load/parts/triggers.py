"""The part of a load in which events start workflows by a trigger, and some events are published twice."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from chaos.history import Type
from chaos.load.generators import RETRY
from chaos.load.parts.part import LoadPart
from chaos.load.work import CAPABILITY
from chaos.load.workflows import PAUSE_SECONDS, WorkflowLoad
from coditect import CoditectError, From, Workflow
from coditect.errors import InputError, NotFound, ResultTimeout
from coditect.model.message import Event
from coditect.wire import routing
from coditect.wire.events import event_message

TRIGGERED = "triggered"
"""The name of the only node of a trigger's workflow, which is given the id of the event."""
EVENTS = 6
"""The number of events that are published for one trigger."""
AGAIN = 0.3
"""The share of the events that are published again after the broker has confirmed them."""
PUBLISH_SECONDS = 5.0
RUN_SECONDS = 60.0
"""The time after which an event that started nothing may be lost, when no fault lasts any more."""


async def trigger(load: WorkflowLoad) -> None:
    """Make a trigger, publish events until confirmed, wait up to 60 s for runs, remove it, and await the runs' ends."""
    name = load.key()
    flow = Workflow(name)
    flow.task(CAPABILITY, load.shapes.work() | {"after": [From("input")]}, name=TRIGGERED, retry=RETRY)
    load.note(Type.INVOKE, "trigger", name)
    await load.answered(lambda: _made(load, name, flow))
    for number in range(EVENTS):
        await load.soon()
        await _published(load, name, f"{name}/{number}")
    with suppress(TimeoutError):
        async with asyncio.timeout(RUN_SECONDS):
            await load.answered(lambda: _all_ran(load, name))
    await load.answered(lambda: _removed(load, name))
    runs = await load.answered(lambda: _runs_of(load, name))
    load.note(Type.OK, "trigger", name)
    facts = load.shapes.told(flow.definition()) | {"trigger": name, "inputs": {}}
    for run in runs:
        load.accepted(run, ends=("completed",), **facts)
        await load.end_of(load.client.workflows.get(run))


async def _made(load: WorkflowLoad, name: str, flow: Workflow) -> None:
    """Create the trigger, unless an earlier request that got no answer has created it already."""
    with suppress(InputError):
        await load.client.triggers.create(name, f"happened.{name}", flow, From("event.id"))


async def _all_ran(load: WorkflowLoad, name: str) -> None:
    """Return if every event has started a workflow; else raise ResultTimeout, so that the caller asks again."""
    if len(await _runs_of(load, name)) < EVENTS:
        raise ResultTimeout("Not every event has started a workflow yet")


async def _removed(load: WorkflowLoad, name: str) -> None:
    with suppress(NotFound):
        await load.client.triggers.delete(name)


async def _published(load: WorkflowLoad, name: str, identity: str) -> None:
    """Publish an event, under one id, until the broker has confirmed it, and sometimes once more."""
    event = Event(f"happened.{name}", "/chaos", identity, time_ms=0)
    times = 1 + (load.random.random() < AGAIN)
    load.note(Type.INVOKE, "event", identity, trigger=name)
    while times:
        try:
            await load.client._broker.publish(
                event_message(event), exchange=routing.EVENTS, routing_key=event.type, timeout_seconds=PUBLISH_SECONDS
            )
        except CoditectError:
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            times -= 1
    load.note(Type.OK, "event", identity)


async def _runs_of(load: WorkflowLoad, name: str) -> list[str]:
    return [row.workflow async for row in load.client.workflows.list(name=name)]


PART = LoadPart("triggers", trigger)
