"""The interface of the agent registry (its port), with two adapters: `redis` and `memory`.

A registration is a lease: it lives `lease_seconds` from its last heartbeat. Losing the registry loses nothing else:
execution goes on, and every agent's next heartbeat registers the agent again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from coditect.model.ids import AgentId
from coditect.model.limits.rate import Rate
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration
from coditect.registry.token_bucket import TokenLease

LEASE_SECONDS = 3.0
BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Search:
    """The criteria of a search for agents; every field that is set must match, an empty search finds all agents."""

    capability: str | None = None
    tag: str | None = None
    """A tag that the agent or one of its capabilities must have."""
    keyword: str | None = None
    """A text to find, in any case, in an agent's name or tags, or a capability's name, description or tags."""
    status: AgentStatus | None = None

    def matches(self, record: AgentRecord) -> bool:
        """Tell whether an agent's record matches all criteria of the search."""
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
    """Yield the texts of an agent that a keyword search reads: names, tags and descriptions."""
    yield agent.name
    yield from agent.all_tags
    for offer in agent.capabilities:
        yield offer.name
        yield offer.description


class Registry(Protocol):
    """The interface of the fleet's directory of agents; an async context manager that opens even if its server is down.

    Every call ends within 1 s.

    Raises:
        RegistryUnavailable: when the registry does not answer; retryable, and a write may have been done or not.
    """

    async def register(self, registration: Registration, load: Load, *, lease_seconds: float) -> None:
        """Write an agent's registration, load and index entries atomically, in place of an earlier registration."""

    async def renew(self, agent_id: AgentId, load: Load, *, lease_seconds: float) -> bool:
        """Extend an agent's lease and write its load; return False when the agent is unknown and must register."""

    async def deregister(self, agent_id: AgentId) -> None:
        """Remove an agent's registration, load and index entries; idempotent."""

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        """Return the living agents that match a search, sorted by agent id."""

    async def leases(self) -> Mapping[AgentId, int]:
        """Return the remaining lease of every living agent, in milliseconds; cheaper than `find`."""

    async def get(self, agent_id: AgentId) -> AgentRecord | None:
        """Return the record of a living agent; None when no living agent has the id."""

    async def capabilities(self) -> frozenset[str]:
        """Return the names of all capabilities that living agents offer."""

    async def now_ms(self) -> int:
        """Return the registry's wall time in ms since the Unix epoch, to which all processes adjust their clocks."""

    async def next_turn(self, name: str) -> int:
        """Increment the named counter, which all clients share for round robin, and return its new value."""

    async def lease_tokens(self, capability: str, rate: Rate, wanted: int) -> TokenLease:
        """Take up to `wanted` tokens, each for one task's start, from the fleet's bucket of a capability's rate.

        Agents that ask by different rates all get the slowest that any asked by within the last minute. A bucket that
        the registry does not know, or lost, is full.
        """

    async def mark_start(
        self,
        task: str,
        agent_id: AgentId,
        *,
        keep_seconds: float,
        instead_of: AgentId | None = None,
        deliveries: int | None = None,
    ) -> AgentId | None:
        """Write an agent's start mark for a task, unless another agent's mark stays; return the other agent, or None.

        Another agent's mark stays, unless that agent is `instead_of`. A mark lives `keep_seconds`. No mark is written
        for a task that was handed back as often as it had `deliveries`.
        """

    async def clear_start(self, task: str, agent_id: AgentId) -> None:
        """Remove an agent's start mark of a task, and the count of the task's returns without a start; idempotent.

        Another agent's mark stays.
        """

    async def hand_back(self, tasks: Collection[str], agent_id: AgentId, *, keep_seconds: float) -> None:
        """For each task that an agent returned unstarted, count the return, and remove the agent's start mark.

        A count lives `keep_seconds` from the last hand-back.
        """
