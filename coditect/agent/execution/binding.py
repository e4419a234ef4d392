"""The binding of an agent's capabilities at its start: what is the same for every task is put together once."""

from __future__ import annotations

from dataclasses import replace

from coditect.agent.declaration import Agent, Capability
from coditect.agent.handlers.middleware import chained


def bound(agent: Agent) -> dict[str, Capability]:
    """Return the capabilities of an agent by name, each with the agent's middleware around its handler."""
    chain = chained(agent.middleware_stack)
    return {one.name: replace(one, middleware=chain) for one in agent.capabilities}
