"""Handoffs of running tasks, as agents and clients see them: who handed off, who was asked, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.model.row import Row
from coditect.registry.port import Registry, Search


class HandoffState(StrEnum):
    """The state of a handoff: requested, accepted, declined, expired or withdrawn."""

    REQUESTED = "requested"
    """The task is still its owner's, and an agent is asked."""
    ACCEPTED = "accepted"
    DECLINED = "declined"
    """All that were asked declined, or no agent could be asked."""
    EXPIRED = "expired"
    """No agent accepted in time, or the owner lost the task meanwhile."""
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class AskedAgent:
    """An agent to which a task was offered."""

    agent: str
    at_ms: int
    """When it was asked, in milliseconds since the epoch."""
    declined: str
    """Why it declined; empty when it accepted, or has not answered."""


@dataclass(frozen=True, slots=True)
class HandoffRow(Row):
    """A handoff: which agent offers which of its running tasks to whom, and how the offer ended."""

    handoff: str
    """The id of the handoff."""
    task: str
    workflow: str
    state: HandoffState
    to: str
    """The agent or the capability that the owner named."""
    capability: str
    """The capability as which the task is taken over."""
    owner: str
    """The agent that had the task at the request."""
    fence: int
    """The fence under which the owner had it."""
    reason: str
    context: Any
    """What the owner passes on; None in a listing."""
    asked: tuple[AskedAgent, ...]
    waiting: tuple[str, ...]
    """The agents that are asked next."""
    begun_ms: int
    until_ms: int
    ended_ms: int
    """When it ended; 0 while it is open."""
    by: str
    """The agent that accepted, or the person that withdrew it."""
    why: str
    """Why the task stayed with its owner."""

    @property
    def reasons(self) -> Mapping[str, str]:
        """The reasons of the asked agents that declined, by agent."""
        return {agent.agent: agent.declined for agent in self.asked if agent.declined}


async def agents_to_ask(registry: Registry, to: str, *, owner: str) -> tuple[list[str], str]:
    """Return the ids of the living agents that `to` names, except a task's owner, most free slots first.

    `to` is the id of an agent, or a name or capability of agents; the second value is the capability, else empty.

    Raises:
        RegistryUnavailable: when the registry does not answer; retryable.
    """
    agent = await registry.get(AgentId(to))
    if agent is not None:
        return _askable([agent], owner), ""
    named = [record for record in await registry.find(Search(keyword=to)) if record.registration.name == to]
    if named:
        return _askable(named, owner), ""
    return _askable(await registry.find(Search(capability=to)), owner), to


def _askable(found: Sequence[AgentRecord], owner: str) -> list[str]:
    living = [record for record in found if record.load.status not in {AgentStatus.DRAINING, AgentStatus.OFFLINE}]
    return [record.agent_id for record in sorted(living, key=_free) if record.agent_id != owner]


def _free(record: AgentRecord) -> tuple[int, str]:
    return -record.free_slots, record.agent_id
