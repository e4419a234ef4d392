"""The look-up of living agents, including HTTP agents to which no process of the fleet passes tasks yet.

A bridge keeps its HTTP agents in a registry of their own, beside that of the fleet, which has an agent as soon as it
takes tasks. Who looks for agents looks into both.
"""

from __future__ import annotations

from dataclasses import replace

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load
from coditect.registry.port import Registry, Search

NOT_SERVED = Load(status=AgentStatus.STARTING, trouble="no bridge serves it yet: its URL is tried once a second")


async def find_living(fleet: Registry, http_agents: Registry, search: Search) -> tuple[AgentRecord, ...]:
    """Return the living agents that match a search, sorted by agent id, with the HTTP agents that take no tasks yet."""
    found = {one.agent_id: one for one in await fleet.find(search)}
    for record in await http_agents.find(replace(search, status=None)):
        waiting = replace(record, load=NOT_SERVED)
        if record.agent_id not in found and search.matches(waiting) and await fleet.get(record.agent_id) is None:
            found[record.agent_id] = waiting
    return tuple(found[agent_id] for agent_id in sorted(found))


async def get_living(fleet: Registry, http_agents: Registry, agent_id: AgentId) -> AgentRecord | None:
    """Return the record of a living agent, even one that takes no tasks yet; None when no living agent has the id."""
    record = await fleet.get(agent_id)
    if record is None and (waiting := await http_agents.get(agent_id)) is not None:
        return replace(waiting, load=NOT_SERVED)
    return record
