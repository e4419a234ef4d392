"""An agent as the fleet knows it: what it said of itself, and what it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId


class AgentStatus(StrEnum):
    """Where an agent is in its life."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Registration:
    """What an agent process says of itself when it starts; it does not change while it lives."""

    agent_id: AgentId
    name: str
    version: str
    slots: int
    capabilities: tuple[CapabilitySpec, ...]
    tags: frozenset[str] = frozenset()
    host: str = ""
    pid: int = 0
    started_at_ms: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_tags(self) -> frozenset[str]:
        """Its own tags and those of its capabilities."""
        return self.tags.union(*(offer.tags for offer in self.capabilities))


@dataclass(frozen=True, slots=True)
class Load:
    """What an agent carries right now; sent with every heartbeat."""

    status: AgentStatus = AgentStatus.STARTING
    running: int = 0
    """Slots in use."""
    suspended: int = 0
    """Tasks that await another agent, or a word of their owner, and hold no slot."""
    cpu_percent: float = 0.0
    """Of one core, since the last heartbeat."""
    resident_bytes: int = 0
    latency_ms: float = 0.0
    """Moving average of a handler's run."""
    completed: int = 0
    """Since the process started."""
    failed: int = 0
    awaiting_owner: int = 0
    """How many of the suspended wait for their owner: a dispatcher that does not answer."""
    trouble: str = ""
    """Why tasks fail here for a reason of the agent's own, such as too many open files; empty while they do not."""


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """One agent as the registry holds it."""

    registration: Registration
    load: Load
    lease_ms: int
    """What is left of its lease, in milliseconds; 0 when it lapsed."""

    @property
    def agent_id(self) -> AgentId:
        """Its id."""
        return self.registration.agent_id

    @property
    def free_slots(self) -> int:
        """Slots not in use."""
        return max(0, self.registration.slots - self.load.running)
