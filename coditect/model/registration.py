"""An agent process as the registry shows it: registration (fixed at the start), load (per heartbeat) and lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.prediction import RecentOutcomes, Weight


class AgentStatus(StrEnum):
    """The status of an agent process: starting, idle, busy, draining or offline."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Registration:
    """The description that an agent process registers when it starts; constant while the process lives."""

    agent_id: AgentId
    name: str
    version: str
    slots: int
    capabilities: tuple[CapabilitySpec, ...]
    tags: frozenset[str] = frozenset()
    host: str = ""
    pid: int = 0
    started_at_ms: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Any JSON values by name."""

    @property
    def all_tags(self) -> frozenset[str]:
        """The agent's own tags together with the tags of its capabilities."""
        return self.tags.union(*(offer.tags for offer in self.capabilities))


@dataclass(frozen=True, slots=True)
class Load:
    """The current load of an agent process, sent with every heartbeat."""

    status: AgentStatus = AgentStatus.STARTING
    running: int = 0
    """The number of slots in use."""
    suspended: int = 0
    """The number of tasks without a slot, which await another agent or an answer of their dispatcher."""
    cpu_percent: float = 0.0
    """The process's share of one core since the last heartbeat, in percent."""
    resident_bytes: int = 0
    latency_ms: float = 0.0
    """Moving average of the handlers' run time."""
    completed: int = 0
    """The number of tasks that completed since the process started."""
    failed: int = 0
    """The number of tasks that failed for good, were refused or canceled since the process started."""
    failed_attempts: int = 0
    """The number of attempts that did so, retried ones among them."""
    awaiting_owner: int = 0
    """How many of the suspended tasks wait for a dispatcher that does not answer."""
    trouble: str = ""
    """Why tasks fail in this agent for a reason of its own, such as too many open files; empty while none fails so."""
    waiting: tuple[tuple[str, str], ...] = ()
    """The capabilities whose tasks wait, each with the open breaker for which they wait."""
    limited: tuple[tuple[str, str], ...] = ()
    """The capabilities whose tasks wait for tokens of their rate, each with the rate as text."""
    learned: tuple[Weight, ...] = ()
    """What it has learned, by the features of their inputs, from the tasks that senders picked it for."""
    recent: tuple[RecentOutcomes, ...] = ()
    """How the recent tasks went that senders picked this agent for, by kind of task."""
    beat_ms: int = field(default=0, compare=False)
    """When the registry got this heartbeat, in Unix milliseconds of its clock; 0 before it did."""


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent's entry in the registry: registration, last load, and the time left of the lease."""

    registration: Registration
    load: Load
    lease_ms: int
    """Milliseconds until the agent's lease ends; 0 after the end."""

    @property
    def agent_id(self) -> AgentId:
        """The id of the agent process."""
        return self.registration.agent_id

    @property
    def free_slots(self) -> int:
        """Number of slots that run no task."""
        return max(0, self.registration.slots - self.load.running)
