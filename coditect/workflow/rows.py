"""The control plane's reports of workflows: rows for a workflow, a node, an attempt, a dead node, an approval.

Instants are milliseconds since the epoch; None for an instant that was not reached. Fields that only a newer control
plane knows are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from coditect.errors import InvalidTask
from coditect.workflow.definition import OnFailure
from coditect.workflow.states import TaskState, WorkflowState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """The control plane's report of one workflow: id, name, state, number of nodes in each state, and times."""

    workflow: str
    name: str
    state: WorkflowState
    shard: int | None
    counts: Mapping[TaskState, int]
    """The number of nodes by state, without empty states."""
    total: int
    """The number of nodes, the elements of maps included."""
    accepted_at_ms: int | None
    finished_at_ms: int | None
    reason: str
    """The reason why the workflow ended or does not go on; may be empty."""
    key: str | None
    """The idempotency key of the workflow's start."""
    ended_as: WorkflowState | None = None
    """The state in which the workflow ended before its compensation began; None without a compensation."""
    labels: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    """The id of the workflow that runs this one as its child; empty for a workflow that was started."""
    parent_node: str = ""
    """The node of the parent that runs this workflow."""

    @property
    def ended(self) -> int:
        """The number of nodes that have ended, in any state."""
        return sum(count for state, count in self.counts.items() if state.terminal)

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a workflow's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(
            workflow=str(values["workflow"]),
            name=str(values.get("name") or ""),
            state=WorkflowState(values["state"]),
            shard=values.get("shard"),
            counts={TaskState(state): int(count) for state, count in (values.get("counts") or {}).items() if count},
            total=int(values.get("total") or 0),
            accepted_at_ms=values.get("accepted_at"),
            finished_at_ms=values.get("finished_at"),
            reason=str(values.get("reason") or ""),
            key=values.get("key"),
            ended_as=None if values.get("ended_as") is None else WorkflowState(values["ended_as"]),
            labels={str(name): str(label) for name, label in (values.get("labels") or {}).items()},
            parent=str((values.get("parent") or {}).get("workflow") or ""),
            parent_node=str((values.get("parent") or {}).get("node") or ""),
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeRow:
    """The report of a node, or of a map's element such as `review[3]`: state, agent and times, without the value."""

    name: str
    state: TaskState
    kind: str
    """The kind of the node: task, map, approval, wait, wait_until, await_signal, workflow or compensation."""
    after: tuple[str, ...]
    on_failure: Mapping[str, OnFailure]
    """The failure policies of the edges, by predecessor; an edge that is not listed has the policy `fail`."""
    definition: Mapping[str, Any]
    """The node's other fields as a workflow file has them, without the input; empty for derived nodes."""
    capability: str
    priority: str
    question: str
    """The question of an approval."""
    attempt: int
    """The number of the attempt under way; else of the last attempt, or of the next one."""
    fence: int
    """The fence, which grows with every publication of the node; 0 before the first."""
    agent: str
    """The agent that ran the node last; for an approval, the person who answered."""
    ready_at_ms: int | None
    published_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    reason: str
    message: str
    children: tuple[str, ...] = ()
    """The ids of the workflows that the node ran as its children, the latest last."""

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a node's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(
            name=str(values["name"]),
            state=TaskState(values["state"]),
            kind=str(values.get("kind") or "task"),
            after=tuple(str(name) for name in values.get("after") or ()),
            on_failure={str(name): OnFailure(policy) for name, policy in (values.get("on_failure") or {}).items()},
            definition=dict(values.get("definition") or {}),
            capability=str(values.get("capability") or ""),
            priority=str(values.get("priority") or ""),
            question=str(values.get("question") or ""),
            attempt=int(values.get("attempt") or 0),
            fence=int(values.get("fence") or 0),
            agent=str(values.get("agent") or ""),
            ready_at_ms=values.get("ready_at"),
            published_at_ms=values.get("published_at"),
            started_at_ms=values.get("started_at"),
            finished_at_ms=values.get("finished_at"),
            reason=str(values.get("reason") or ""),
            message=str(values.get("message") or ""),
            children=tuple(str(child) for child in values.get("children") or ()),
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """The report of one attempt to run a node: its agent, its times, and its state or outcome, without the value."""

    node: str
    attempt: int
    fence: int
    publication: int
    agent: str
    published_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    status: str
    """The attempt's state: published, working, completed, failed, canceled, rejected, or lost (no end was reported)."""
    reason: str
    message: str

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse an attempt's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(
            node=str(values["node"]),
            attempt=int(values.get("attempt") or 0),
            fence=int(values.get("fence") or 0),
            publication=int(values.get("publication") or 0),
            agent=str(values.get("agent") or ""),
            published_at_ms=values.get("published_at"),
            started_at_ms=values.get("started_at"),
            finished_at_ms=values.get("finished_at"),
            status=str(values.get("status") or ""),
            reason=str(values.get("reason") or ""),
            message=str(values.get("message") or ""),
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeInput:
    """The report of a node's input, which is None until its expressions are evaluated, and of the workflow's trace."""

    value: Any
    """The input; None as long as it is not evaluated."""
    evaluated: bool
    """Whether the expressions of the input were evaluated; True without any."""
    trace: str
    """The `traceparent` of the request that started the workflow; empty without tracing."""

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a node's input from an answer of the control plane.

        Raises:
            InvalidTask: when the answer has another form.
        """
        return read_row(row, lambda values: cls(
            values["input"], values["evaluated"] is True, str(values.get("trace") or "")
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeadRow:
    """The report of a node that was given up: an agent died in its last attempt, or its result cannot be recorded."""

    workflow: str
    node: NodeRow

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse, from an answer of the control plane, the report of a node that was given up (state `dead`).

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(str(values["workflow"]), NodeRow.read(values)))


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """A question that waits for a person's answer: of an approval node, or of the approval policy about a task."""

    workflow: str
    node: str
    question: str
    name: str
    """The workflow's name."""
    since_ms: int | None
    """The instant at which the approval began to wait."""
    capability: str = ""
    """The capability of a task that the approval policy asks about; empty for an approval node."""
    rule: str = ""
    """The rule of the policy that asks; empty without a policy."""
    risk: str = ""
    due_ms: int | None = None
    """When the question is answered by `on_timeout`; None for never."""
    on_timeout: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What is approved: `labels` and `workflow_input` of the workflow, `input` of the task, `results` of the nodes
    before it, by name. A long value is cut, as text that ends with an ellipsis."""

    @property
    def id(self) -> str:
        """The id by which the approval is granted or denied."""
        return f"{self.workflow}:{self.node}"

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse an approval's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(
            workflow=str(values["workflow"]),
            node=str(values["node"]),
            question=str(values.get("question") or ""),
            name=str(values.get("name") or ""),
            since_ms=values.get("since"),
            **{key: str(values.get(key) or "") for key in ("capability", "rule", "risk", "on_timeout")},
            due_ms=values.get("due_ms"),
            about=values.get("about") or {},
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """The report of one checkpoint of a workflow: a completed node, or a state that an agent or client gave a name."""

    name: str
    """The checkpoint's name; that of a completed node is the node's."""
    node: str
    """The completed node; empty for a checkpoint on request."""
    at_ms: int
    """When the node completed, or the checkpoint was asked for."""
    by: str
    """The agent or client that asked for it; empty for a node's."""
    publication: int = 0
    """The number of the node's last publication, which orders what ended in the same millisecond; 0 for others."""

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a checkpoint's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(
            str(values["checkpoint"]), str(values.get("node") or ""), int(values["at_ms"]), str(values.get("by") or ""),
            int(values.get("publication") or 0),
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class RestoreRow:
    """The report of one restore of a workflow: when, by whom, to which checkpoint."""

    at_ms: int
    by: str
    checkpoint: str

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a restore's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(int(values["at_ms"]), str(values["by"]), str(values["checkpoint"])))


@dataclass(frozen=True, slots=True)
class DiscardedRow:
    """The report of one node that a restore would discard, and whose handler may have begun since the checkpoint."""

    node: str
    state: TaskState
    compensated: bool
    """Whether the restore compensates the node first; otherwise what the node did cannot be undone."""

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse a discarded node's row from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda values: cls(
            str(values["node"]), TaskState(values["state"]), compensated=values["compensated"] is True
        ))  # fmt: skip


def read_row(row: object, make: Callable[[Mapping[str, Any]], T]) -> T:
    """Return what `make` makes of a row in an answer of the control plane; raise InvalidTask for a malformed row.

    Raises:
        InvalidTask: when the row is no object, or lacks a field, or has one of another type.
    """
    if not isinstance(row, Mapping):
        raise InvalidTask("A row of the control plane is an object", given=type(row).__name__)
    try:
        return make(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidTask("A row of the control plane is not what it should be", reason=repr(error)[:200]) from error
