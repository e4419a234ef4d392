"""What the rest of Coditect asks of the registry. Two adapters: `redis` and `memory`.

A registration is a lease: it lives `lease_seconds` from its last heartbeat. Losing the registry loses
nothing else: execution goes on, and every agent's next heartbeat puts it back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration

LEASE_SECONDS = 3.0
BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Search:
    """Which agents are asked for; every field that is set must match, an empty search finds all."""

    capability: str | None = None
    tag: str | None = None
    """A tag of the agent or of one of its capabilities."""
    keyword: str | None = None
    """Occurs, in any case, in a name or tag of the agent, or in a capability's name, description or tags."""
    status: AgentStatus | None = None

    def matches(self, record: AgentRecord) -> bool:
        """Whether the agent is one of those asked for."""
        agent = record.registration
        if self.capability is not None and all(offer.name != self.capability for offer in agent.capabilities):
            return False
        if self.tag is not None and self.tag not in agent.all_tags:
            return False
        if self.status is not None and self.status is not record.load.status:
            return False
        keyword = (self.keyword or "").casefold()
        return any(keyword in text.casefold() for text in texts_of(agent))


def texts_of(agent: Registration) -> Iterator[str]:
    """What a keyword is looked for in."""
    yield agent.name
    yield from agent.all_tags
    for offer in agent.capabilities:
        yield offer.name
        yield offer.description


class Registry(Protocol):
    """The fleet's directory; an async context manager (opening it needs no server).

    Every call ends within 1 s.

    Raises: RegistryUnavailable, retryable; whether a write was done is unknown then.
    """

    async def register(self, registration: Registration, load: Load, *, lease_seconds: float) -> None:
        """Writes the agent with its indexes, atomically; replaces what was there."""

    async def renew(self, agent_id: AgentId, load: Load, *, lease_seconds: float) -> bool:
        """Extends the lease and writes the load; False when the agent is unknown (register again)."""

    async def deregister(self, agent_id: AgentId) -> None:
        """Removes the agent and its indexes; idempotent."""

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        """The living agents that match, by agent id."""

    async def leases(self) -> Mapping[AgentId, int]:
        """The living agents with what is left of their leases, in milliseconds; nothing else of them is read."""

    async def get(self, agent_id: AgentId) -> AgentRecord | None:
        """One living agent."""

    async def capabilities(self) -> frozenset[str]:
        """Every capability that a living agent offers."""

    async def now_ms(self) -> int:
        """The registry's wall time, in milliseconds since the epoch: what the clocks of a fleet are compared with."""

    async def next_turn(self, name: str) -> int:
        """A number that grows by one with each call by anybody, for round robin."""

    async def mark_start(
        self,
        task: str,
        agent_id: AgentId,
        *,
        keep_seconds: float,
        instead_of: AgentId | None = None,
        deliveries: int | None = None,
    ) -> AgentId | None:
        """Notes that this agent starts the task; None when it is noted.

        A mark of another agent stays, unless it is that of `instead_of`; that agent is returned. A mark lives
        `keep_seconds`. There is nothing to note where the task was handed back as often as it had `deliveries`.
        """

    async def clear_start(self, task: str, agent_id: AgentId) -> None:
        """Takes this agent's mark away and leaves another's; idempotent. It is not known as handed back any more."""

    async def hand_back(self, tasks: Collection[str], agent_id: AgentId, *, keep_seconds: float) -> None:
        """Counts that this agent had these tasks and hands them back; takes its marks away.

        A count lives `keep_seconds` from the last time.
        """
