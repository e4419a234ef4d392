"""Use cases for triggers: create, list, pause, resume and delete them."""

from __future__ import annotations

from typing import Any

from coditect.client.coordination.triggers import TriggerOptions, TriggerRow
from coditect.operations.connections import Connections
from coditect.workflow.definition import Definition


async def create_trigger(
    opened: Connections, name: str, event: str, *, definition: Definition | None, value: Any, options: TriggerOptions
) -> TriggerRow:
    """Make a trigger that starts a workflow, or sends a signal, at each event that fits its pattern."""
    async with opened.fleet() as client:
        return await client.triggers.create(name, event, definition, value, **options)


async def list_triggers(opened: Connections, *, most: int) -> list[TriggerRow]:
    """Return at most `most` triggers, sorted by name."""
    async with opened.fleet() as client:
        return [row async for row in client.triggers.list(most=most)]


async def steer_trigger(opened: Connections, name: str, *, paused: bool) -> TriggerRow:
    """Pause or resume a trigger, and return the control plane's report of it afterwards."""
    async with opened.fleet() as client:
        return await (client.triggers.pause(name) if paused else client.triggers.resume(name))


async def delete_trigger(opened: Connections, name: str) -> None:
    """Delete a trigger; the workflows that it started go on."""
    async with opened.fleet() as client:
        await client.triggers.delete(name)
