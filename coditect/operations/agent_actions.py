"""Functions that run a capability (an agent's action) at one agent, or at all that offer it, as direct tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from coditect.client.client import Client
from coditect.client.direct import process_of
from coditect.client.options import Options
from coditect.errors import UnknownCapability
from coditect.model import arguments
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import Duration

ANY = "*"
"""The target that means any agent that offers the action."""
PRIORITIES: Mapping[str, Priority] = {
    "low": Priority.P2,
    "medium": Priority.P1,
    "high": Priority.P1,
    "critical": Priority.P0,
}


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
            pin = process_of(target, check_capability_name(action), await own.agents.list()).agent_id
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
    """Ask each living process that offers the capability `action`; return results or errors by agent id.

    It is `Client.ask_all` with all answers at once: each agent answers for itself, in one attempt, and an agent without
    a result has its error in place of it. `exclude` names agents, by id or name, that are not asked.
    See `request_agent_action`; `Client.broadcast` sends data that is not answered.

    Raises:
        UnknownCapability: when no agent is left to be asked.
        CoditectError: the errors of `Client.ask_all`.
    """
    level, left_out = _level(priority), frozenset(exclude)
    async with _opened(client) as own:
        found = await own.agents.list(action)
        asked = [one.agent_id for one in found if not left_out & {one.agent_id, one.registration.name}]
        if not asked:
            fix = "coditect agent list shows who offers it; exclude names ids and names"
            raise UnknownCapability("No agent is left that offers this action", action=action, fix=fix)
        answers = own.ask_all(action, parameters, agents=asked, timeout=timeout, priority=level)
        return {answer.agent: answer.value if answer.error is None else answer.error async for answer in answers}


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
