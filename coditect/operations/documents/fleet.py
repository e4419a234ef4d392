"""The documents of the fleet: agents with their load, and capabilities with their schemas."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from coditect.model.capability import CapabilitySpec
from coditect.model.registration import AgentRecord, Load
from coditect.operations.fleet import CapabilityOffer


@dataclass(frozen=True, slots=True)
class SpecDocument:
    """A capability as an agent declares it."""

    name: str
    description: str
    cost: float
    tags: tuple[str, ...]
    timeout_seconds: float
    input_schema: dict[str, Any]
    """JSON Schema of a task's input."""
    output_schema: dict[str, Any]
    """JSON Schema of a task's value."""
    rate: str | None
    """The bound on how often executions begin in the whole fleet, as text."""

    @classmethod
    def of(cls, spec: CapabilitySpec) -> SpecDocument:
        """Convert a capability's declaration to plain values for answers in JSON, such as its rate to text."""
        return cls(
            spec.name,
            spec.description,
            spec.cost,
            tuple(sorted(spec.tags)),
            spec.timeout_seconds,
            dict(spec.input_schema),
            dict(spec.output_schema),
            None if spec.rate is None else str(spec.rate),
        )


@dataclass(frozen=True, slots=True)
class OfferDocument:
    """A capability with the living agents that offer it."""

    capability: SpecDocument
    agents: tuple[str, ...]
    versions: tuple[str, ...]

    @classmethod
    def of(cls, offer: CapabilityOffer) -> OfferDocument:
        """Convert an offered capability, with its agents' ids and versions, to plain values for answers in JSON."""
        return cls(SpecDocument.of(offer.spec), offer.agents, offer.versions)


@dataclass(frozen=True, slots=True)
class LoadDocument:
    """The load of an agent process at its last heartbeat."""

    running: int
    suspended: int
    awaiting_owner: int
    cpu_percent: float
    resident_bytes: int
    latency_ms: float
    completed: int
    failed: int
    trouble: str

    @classmethod
    def of(cls, load: Load) -> LoadDocument:
        """Convert an agent process's load, as of its last heartbeat, to plain values for answers in JSON."""
        return cls(
            load.running,
            load.suspended,
            load.awaiting_owner,
            load.cpu_percent,
            load.resident_bytes,
            load.latency_ms,
            load.completed,
            load.failed,
            load.trouble,
        )


@dataclass(frozen=True, slots=True)
class AgentDocument:
    """An agent process as the registry shows it."""

    agent_id: str
    name: str
    version: str
    status: str
    slots: int
    free_slots: int
    tags: tuple[str, ...]
    host: str
    pid: int
    started_at: str
    """The instant of the process's start, ISO 8601 in UTC."""
    lease_ms: int
    """Milliseconds until the agent's lease ends, unless it is renewed."""
    metadata: dict[str, str]
    load: LoadDocument
    capabilities: tuple[SpecDocument, ...]

    @classmethod
    def of(cls, record: AgentRecord) -> AgentDocument:
        """Convert an agent's registry record to the plain form that the API and the command line print as JSON."""
        agent = record.registration
        return cls(
            record.agent_id,
            agent.name,
            agent.version,
            record.load.status.value,
            agent.slots,
            record.free_slots,
            tuple(sorted(agent.tags)),
            agent.host,
            agent.pid,
            instant_text(agent.started_at_ms),
            record.lease_ms,
            dict(agent.metadata),
            LoadDocument.of(record.load),
            tuple(SpecDocument.of(spec) for spec in agent.capabilities),
        )


def instant_text(ms: int) -> str:
    """Return milliseconds since the epoch as ISO 8601 text in UTC, or as digits when the calendar has no such date."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return str(ms)
