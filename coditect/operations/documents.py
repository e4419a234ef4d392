"""Agents, capabilities, tasks and dead letters as JSON documents, which the command line and the HTTP API share."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from coditect.model.capability import CapabilitySpec
from coditect.model.registration import AgentRecord, Load
from coditect.model.result import Outcome, Status
from coditect.operations.dead_letters import SettledLetter
from coditect.operations.fleet import CapabilityOffer
from coditect.operations.letter import DeadLetter
from coditect.operations.tasks import DurableTask
from coditect.wire.json import loads
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.rows import DeadRow


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
    last_heartbeat: str | None
    """When the agent's last heartbeat came, ISO 8601 in UTC; null if a process of an older version got it."""
    metadata: dict[str, Any]
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
            instant_text(record.load.beat_ms) if record.load.beat_ms else None,
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


SUBMITTED = "submitted"
"""The status of a direct task whose result has not come."""


@dataclass(frozen=True, slots=True)
class TaskDocument:
    """A task as a document: its status, and its value or failure once it has ended."""

    task_id: str
    status: str
    """`submitted` for a direct task under way, a node's state for a durable one, or how the task ended."""
    value: Any = None
    """The value of a completed task; None for a value of bytes."""
    value_base64: str | None = None
    """The value of a completed task whose handler returns bytes, in Base64."""
    failure: dict[str, Any] | None = None
    """Why the task has no value: reason, type, message, traceback, retryable and fix."""
    agent: str | None = None
    attempt: int | None = None
    started_at_ms: int | None = None
    """When the handler began, in milliseconds since the epoch."""
    finished_at_ms: int | None = None
    attempts: tuple[AttemptRow, ...] = ()
    """Every attempt of a durable task."""

    @classmethod
    def of(cls, task_id: str, outcome: Outcome, attempts: tuple[AttemptRow, ...] = ()) -> TaskDocument:
        """Convert the outcome of an ended task, and the given attempts, if any, to plain values for answers in JSON."""
        completed, binary = outcome.status is Status.COMPLETED, outcome.binary
        return cls(
            task_id,
            outcome.status.value,
            value=loads(outcome.body) if completed and not binary else None,
            value_base64=b64encode(outcome.body).decode() if binary else None,
            failure=outcome.failure.as_json() if outcome.failure else None,
            agent=outcome.agent_id,
            attempt=outcome.attempt,
            started_at_ms=outcome.started_at_ms,
            finished_at_ms=outcome.finished_at_ms,
            attempts=attempts,
        )

    @classmethod
    def of_durable(cls, task_id: str, task: DurableTask) -> TaskDocument:
        """Convert a durable task, ended or not, to plain values for answers in JSON, with all its attempts."""
        attempts, row = tuple(task.attempts), task.row
        if task.outcome is not None:
            return cls.of(task_id, task.outcome, attempts)
        return cls(
            task_id,
            row.state.value,
            agent=row.agent or None,
            attempt=row.attempt,
            started_at_ms=row.started_at_ms,
            attempts=attempts,
        )


LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True)
class LetterDocument:
    """A dead letter as a row of a listing."""

    id: str | None
    capability: str
    priority: str
    reason: str
    agent: str | None
    attempts: int
    redrives: int
    dead_at: str | None
    error: str | None
    queue: str
    body_bytes: int

    @classmethod
    def of(cls, letter: DeadLetter) -> LetterDocument:
        """Convert a dead letter to a row for answers of the command line and the HTTP API."""
        error = letter.error
        return cls(
            letter.id,
            letter.capability,
            letter.priority.value,
            letter.reason,
            letter.agent_id,
            letter.attempts,
            letter.redrives,
            None if letter.dead_at_ms is None else instant_text(letter.dead_at_ms),
            f"{error.type}: {error.message}"[:LONGEST_ERROR] if error else None,
            letter.queue,
            len(letter.body),
        )


@dataclass(frozen=True, slots=True)
class WholeLetter:
    """A dead letter with its failed attempts and its body."""

    letter: LetterDocument
    failure: dict[str, Any] | None
    """Why the last attempt failed, with its traceback."""
    errors: tuple[dict[str, Any], ...]
    """The earlier failed attempts, oldest first."""
    body: str
    """The task's body as text; bytes that are no UTF-8 are replaced."""

    @classmethod
    def of(cls, letter: DeadLetter) -> WholeLetter:
        """Convert a dead letter, in full, to a document for answers of the command line and the HTTP API."""
        failure = letter.error.as_json() if letter.error else None
        errors = tuple(dict(error) for error in letter.errors)
        return cls(LetterDocument.of(letter), failure, errors, letter.body.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class DeadNodeDocument:
    """A workflow node that was given up."""

    workflow: str
    node: str
    capability: str
    priority: str
    reason: str
    agent: str
    attempts: int
    dead_at: str | None
    error: str | None

    @classmethod
    def of(cls, row: DeadRow) -> DeadNodeDocument:
        """Convert a workflow node that was given up to a row for answers of the command line and the HTTP API."""
        node = row.node
        dead_at = None if node.finished_at_ms is None else instant_text(node.finished_at_ms)
        told = node.message[:LONGEST_ERROR] or None
        return cls(
            row.workflow,
            node.name,
            node.capability,
            node.priority,
            node.reason,
            node.agent,
            node.attempt,
            dead_at,
            told,
        )


@dataclass(frozen=True, slots=True)
class KeptDocument:
    """A dead letter that stayed in its queue, and why."""

    id: str | None
    queue: str
    why: str


@dataclass(frozen=True, slots=True)
class SettledDocument:
    """The outcome of a redrive or discard of dead letters, or of its dry run, for the command line and the API."""

    count: int
    ids: tuple[str, ...]
    kept: tuple[KeptDocument, ...]
    stopped: str | None
    """Why the run ended early; it can be repeated."""
    dry_run: bool

    @classmethod
    def of(cls, settled: SettledLetter) -> SettledDocument:
        """Convert the result of a redrive or discard to plain values for the command line and the HTTP API."""
        kept = tuple(KeptDocument(one.id, one.queue, one.error.sentence) for one in settled.kept)
        stopped = None if settled.stopped is None else settled.stopped.sentence
        return cls(settled.count, settled.ids, kept, stopped, settled.dry_run)
