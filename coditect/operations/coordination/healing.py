"""Use cases for services that heal: watch one, list them, end a watch.

A watched service is a schedule `heal-NAME`, which keeps one workflow of the pattern `self_healing` going: the workflow
begins with the watch, so that it survives whatever dies, and its end is the end of an incident.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from coditect.client.client import Client
from coditect.client.handle import task_error
from coditect.errors import InputError, NotFound
from coditect.operations.connections import Connections
from coditect.operations.fleet import find_agents
from coditect.registry.port import Search
from coditect.wire.json import loads
from coditect.workflow.definition import Definition
from coditect.workflow.graph import every_node, named_capabilities
from coditect.workflow.starters import Schedule
from coditect.workflow.states import TaskState, WorkflowState

PATTERN = "self_healing"
SPACE = "healing"
"""The shared state in which the agents keep a record of each service."""
LOOK = "service.look"
_PREFIX = "heal-"
_EVERY = "10s"
_LOOK_WITHIN = "1m"

Service = Mapping[str, Any]
"""A service as its operator names it, with `name`; the agents that watch it know its fields."""


@dataclass(frozen=True, slots=True)
class HealingRow:
    """The report of one watched service."""

    name: str
    service: Service
    state: str
    """`watched`, `healing`, `asking` a person, `unwell` (left to a person), `paused`, `failed` or `starting`."""
    healed: int | None
    """The instant at which it was healed last, in milliseconds since the epoch."""
    last_run: str | None
    """The id of the workflow that watches or heals it."""


async def look(opened: Connections, service: Service) -> str:
    """Have an agent look at a service once, and return what is wrong with it; empty if nothing.

    Raises:
        UnknownCapability: when no agent watches services.
        TaskRejected, TaskFailed: when the agent refuses the service's fields, or there is no such service.
    """
    async with opened.fleet() as client:
        handle = await client.submit(LOOK, {"service": service})
        outcome = await handle.outcome(timeout=_LOOK_WITHIN)
    if outcome.failure is not None:
        raise task_error(outcome)
    return str(loads(outcome.body).get("why") or "")


async def unserved(opened: Connections, definition: Definition) -> list[str]:
    """Return the capabilities of a workflow that no living agent offers, sorted."""
    named = {name for node in every_node(definition) for _, name in named_capabilities(node)}
    living = await find_agents(opened, Search())
    return sorted(named - {spec.name for record in living for spec in record.registration.capabilities})


async def add(opened: Connections, service: Service, definition: Definition, *, replace: bool) -> HealingRow:
    """Watch a service from now on, and heal it by a workflow; with `replace` also in place of an earlier watch.

    Raises:
        InputError: when the service is watched already, or its name is none; not retryable.
    """
    async with opened.fleet() as client:
        if not replace:
            with suppress(NotFound):
                await _find(client, str(service["name"]))
                fix = "choose another name, or change it: coditect schedule heal --replace"
                raise InputError("A service of this name is watched already", name=service["name"], fix=fix)
        await watch_service(client, service, definition, replace=replace)
        return await _row(client, await _find(client, str(service["name"])))


async def watch_service(
    client: Client, service: Service, definition: Definition, *, replace: bool = False
) -> str | None:
    """Keep a service watched by a schedule; return the workflow that has begun, None while an earlier one ends.

    Raises:
        InputError: when the service is watched already, or its name is none.
    """
    name = f"{_PREFIX}{service['name']}"
    row = await client.schedules.create(
        name, definition, {"service": service}, every=_EVERY, overlap="skip", replace=replace
    )
    await _end(client, row.last_run, "the watch was replaced")
    if replace:  # or the new watch would leave an incident that the old one began to a person
        await client.state(SPACE).delete(service["name"])
    if workflow := await client.schedules.run(name):
        return workflow
    last_run = Schedule.read(await client.schedules.get(name)).last_run
    return None if last_run == row.last_run else last_run  # a tick may have come first and begun it


async def unwatch_service(client: Client, name: str) -> None:
    """End the watch of a service, and a healing that is under way.

    Raises:
        NotFound: when no such service is watched.
    """
    row = await _find(client, name)
    await client.schedules.delete(row.schedule)
    await _end(client, row.last_run, "the watch was removed")
    await client.state(SPACE).delete(name)


async def list_all(opened: Connections) -> list[HealingRow]:
    """Return the watched services, sorted by name."""
    async with opened.fleet() as client:
        rows = [row async for row in client.schedules.list() if row.schedule.startswith(_PREFIX)]
        return [await _row(client, row) for row in rows]


async def delete_schedule(opened: Connections, name: str) -> None:
    """Delete a schedule; if it watches a service, end a healing that is under way, too.

    Raises:
        NotFound: when there is no such schedule.
    """
    async with opened.fleet() as client:
        if Schedule.read(await client.schedules.get(name)).workflow == PATTERN and name.startswith(_PREFIX):
            await unwatch_service(client, name.removeprefix(_PREFIX))
        else:
            await client.schedules.delete(name)


async def _find(client: Client, name: str) -> Schedule:
    return Schedule.read(await client.schedules.get(f"{_PREFIX}{name}"))


async def _end(client: Client, workflow: str | None, reason: str) -> None:
    if workflow is None:
        return
    with suppress(NotFound):  # it ended long ago, and is not kept any more
        if not (await client.workflows.get(workflow).state()).terminal:
            await client.workflows.get(workflow).cancel(reason=reason)


async def _row(client: Client, row: Schedule) -> HealingRow:
    name = row.schedule.removeprefix(_PREFIX)
    found = await client.schedules.get(row.schedule)
    record = await client.state(SPACE).get(name) or {}
    healed = record.get("healed_at") or [None]
    return HealingRow(
        name=name,
        service=(found.get("input") or {}).get("service") or {},
        state=await _state(client, row, unwell=bool(record.get("open"))),
        healed=None if healed[-1] is None else int(healed[-1] * 1_000),
        last_run=row.last_run,
    )


async def _state(client: Client, row: Schedule, *, unwell: bool) -> str:
    if row.last_run is None or row.state == "paused":
        return "paused" if row.state == "paused" else "starting"
    try:
        run = await client.workflows.get(row.last_run).overview()
    except NotFound:  # the next one begins soon
        return "starting"
    if run.state is WorkflowState.FAILED:
        return "failed"
    if TaskState.AWAITING_APPROVAL in run.counts:
        return "asking"
    if not unwell:
        return "watched"
    return "unwell" if run.state.terminal or run.counts.get(TaskState.COMPLETED, 0) == 0 else "healing"


def named(name: str, fields: object) -> Service:
    """Return a service of a file: its fields with its name.

    Raises:
        InputError: when the fields are no object, or have another name; not retryable.
    """
    if not isinstance(fields, dict) or fields.get("name", name) != name:
        fix = "write `NAME: {folder: FOLDER}`, with `command` or `deployment` in place of `folder`"
        raise InputError("This is no service", name=name[:80], fix=fix)
    return {**fields, "name": name}
