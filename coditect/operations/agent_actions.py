"""Functions that run a capability (an agent's action) at one agent, or at all that offer it, as direct tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

from coditect.client.client import Client
from coditect.client.options import Options
from coditect.errors import CoditectError, NotFound, UnknownCapability
from coditect.model import arguments
from coditect.model.capability import Priority, check_capability_name, nearest_names
from coditect.model.duration import Duration
from coditect.model.registration import AgentRecord, AgentStatus

ANY = "*"
"""The target that means any agent that offers the action."""
PRIORITIES: Mapping[str, Priority] = MappingProxyType(
    {"low": Priority.P2, "medium": Priority.P1, "high": Priority.P1, "critical": Priority.P0}
)
LEAVING = (AgentStatus.DRAINING, AgentStatus.OFFLINE)


async def request_agent_action(
    target: str,
    action: str,
    parameters: Any = None,
    timeout: Duration = "5m",
    priority: Priority | str = "medium",
    *,
    client: Client | None = None,
) -> Any:
    """Submit a task of the capability `action`, to a named agent if it takes the task within 1 s; return the result.

    `target` is an agent's id or name, of which the process with the most free slots is asked, or `*` for any agent that
    offers the action. A named agent is a preference: if it does not take the task within a second, another agent that
    offers the action does. `priority` is low, medium, high or critical (P2, P1, P1, P0), or a `Priority`. Without a
    `client` one is opened for this call.

    Raises:
        NotFound: when no living agent has the id or name, or none of the name offers the action.
        CoditectError: the errors of `Client.request`.
    """
    level = _level(priority)
    async with _opened(client) as own:
        pin = None
        if target != ANY:
            offering = _named(target, action, await own.agents(action), await own.agents())
            pin = max(offering, key=lambda record: record.free_slots).agent_id
        options = Options(priority=level, pin=pin)
        return await own.request(action, parameters, timeout=timeout, options=options)


async def broadcast(
    action: str,
    parameters: Any = None,
    *,
    exclude: Iterable[str] = (),
    timeout: Duration = "5m",
    priority: Priority | str = "medium",
    client: Client | None = None,
) -> dict[str, Any]:
    """Submit a task of the capability `action` for each agent that offers it; return results or errors by agent id.

    An agent that does not take its task within a second loses it to another one that offers the action. An agent that
    failed has its error in place of a result. `exclude` names agents, by id or name, that are not asked.
    See `request_agent_action`; `Client.broadcast` sends data that is not answered.

    Raises:
        UnknownCapability: when no agent is left to be asked.
        CoditectError: when a task could not be submitted; those before it go on.
    """
    level, left_out = _level(priority), frozenset(exclude)
    async with _opened(client) as own:
        found = [one for one in await own.agents(action) if not left_out & {one.agent_id, one.registration.name}]
        if not found:
            fix = "coditect agent list shows who offers it; exclude names ids and names"
            raise UnknownCapability("No agent is left that offers this action", action=action, fix=fix)
        options = {one.agent_id: Options(priority=level, pin=one.agent_id, deadline=timeout) for one in found}
        handles = {one: await own.submit(action, parameters, options=options[one]) for one in options}
        ends = await asyncio.gather(*(one.result(timeout=timeout) for one in handles.values()), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, CoditectError):
                raise end
        return dict(zip(handles, ends, strict=True))


@asynccontextmanager
async def _opened(client: Client | None) -> AsyncIterator[Client]:
    if client is not None:
        yield client
        return
    async with Client.from_env() as own:
        yield own


def _level(priority: Priority | str) -> Priority:
    known = PRIORITIES.get(str(priority).lower())
    return known or arguments.choice("priority", priority, Priority)


def _named(
    target: str, action: str, offering: tuple[AgentRecord, ...], living: tuple[AgentRecord, ...]
) -> list[AgentRecord]:
    """Return a named agent's processes that offer a capability, without draining and offline ones, unless all are.

    Raises:
        NotFound: when there are none; the error names similar agents, or what the agent offers.
    """
    check_capability_name(action)
    named = [one for one in living if target in (one.agent_id, one.registration.name)]
    able = [one for one in offering if target in (one.agent_id, one.registration.name)]
    if not named:
        names = {name for one in living for name in (one.agent_id, one.registration.name)}
        raise NotFound("No agent has this id or name", target=target, nearest=nearest_names(target, names))
    if not able:
        offers = sorted({offer.name for one in named for offer in one.registration.capabilities})
        raise NotFound("The agent does not offer this action", target=target, action=action, offers=offers)
    return [one for one in able if one.load.status not in LEAVING] or able
