"""The control plane's reports of workflows: rows for a workflow, a node, a dead node, an approval.

Instants are milliseconds since the epoch; None for an instant that was not reached. Fields that only a newer control
plane knows are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import AliasPath, BeforeValidator, Field

from coditect.model.row import Row, read_row
from coditect.workflow.definition import OnFailure
from coditect.workflow.states import TaskState, WorkflowState

Text = Annotated[str, BeforeValidator(lambda given: "" if given is None else given)]
"""A text that is empty where the control plane says null."""


@dataclass(frozen=True, slots=True)
class WorkflowRow(Row):
    """The control plane's report of one workflow: id, name, state, number of nodes in each state, and times."""

    workflow: str
    name: str
    state: WorkflowState
    shard: int | None
    counts: Mapping[TaskState, int]
    """The number of nodes by state, without empty states."""
    total: int
    """The number of nodes, the elements of maps included."""
    accepted_at_ms: Annotated[int | None, Field(validation_alias="accepted_at")]
    finished_at_ms: Annotated[int | None, Field(validation_alias="finished_at")]
    reason: str
    """The reason why the workflow ended or does not go on; may be empty."""
    key: str | None
    """The idempotency key of the workflow's start."""
    ended_as: WorkflowState | None = None
    """The state in which the workflow ended before its compensation began; None without a compensation."""
    labels: Mapping[str, str] = field(default_factory=dict)
    parent: Annotated[str, Field(validation_alias=AliasPath("parent", "workflow"))] = ""
    """The id of the workflow that runs this one as its child; empty for a workflow that was started."""
    parent_node: Annotated[str, Field(validation_alias=AliasPath("parent", "node"))] = ""
    """The node of the parent that runs this workflow."""

    @property
    def ended(self) -> int:
        """The number of nodes that have ended, in any state."""
        return sum(count for state, count in self.counts.items() if state.terminal)


@dataclass(frozen=True, slots=True)
class NodeRow(Row):
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
    capability: Text
    priority: str
    question: Text
    """The question of an approval."""
    attempt: int
    """The number of the attempt under way; else of the last attempt, or of the next one."""
    fence: int
    """The fence, which grows with every publication of the node; 0 before the first."""
    agent: Text
    """The agent that ran the node last; for an approval, the person who answered."""
    ready_at_ms: Annotated[int | None, Field(validation_alias="ready_at")]
    published_at_ms: Annotated[int | None, Field(validation_alias="published_at")]
    started_at_ms: Annotated[int | None, Field(validation_alias="started_at")]
    finished_at_ms: Annotated[int | None, Field(validation_alias="finished_at")]
    reason: str
    message: str
    children: tuple[str, ...] = ()
    """The ids of the workflows that the node ran as its children, the latest last."""


@dataclass(frozen=True, slots=True)
class NodeInput(Row):
    """The report of a node's input, which is None until its expressions are evaluated, and of the workflow's trace."""

    value: Annotated[Any, Field(validation_alias="input")]
    """The input; None as long as it is not evaluated."""
    evaluated: bool
    """Whether the expressions of the input were evaluated; True without any."""
    trace: Text
    """The `traceparent` of the request that started the workflow; empty without tracing."""


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
        values: Any = row
        return read_row(cls, {"workflow": values["workflow"], "node": values} if isinstance(row, Mapping) else row)


@dataclass(frozen=True, slots=True)
class ApprovalRow(Row):
    """A question that waits for a person's answer: of an approval node, or of the approval policy about a task."""

    workflow: str
    node: str
    question: str
    name: str
    """The workflow's name."""
    since_ms: Annotated[int | None, Field(validation_alias="since")]
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


@dataclass(frozen=True, slots=True)
class CheckpointRow(Row):
    """The report of one checkpoint of a workflow: a completed node, or a state that an agent or client gave a name."""

    name: Annotated[str, Field(validation_alias="checkpoint")]
    """The checkpoint's name; that of a completed node is the node's."""
    node: Text
    """The completed node; empty for a checkpoint on request."""
    at_ms: int
    """When the node completed, or the checkpoint was asked for."""
    by: Text
    """The agent or client that asked for it; empty for a node's."""
    publication: int = 0
    """The number of the node's last publication, which orders what ended in the same millisecond; 0 for others."""


@dataclass(frozen=True, slots=True)
class RestoreRow(Row):
    """The report of one restore of a workflow: when, by whom, to which checkpoint."""

    at_ms: int
    by: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class DiscardedRow(Row):
    """The report of one node that a restore would discard, and whose handler may have begun since the checkpoint."""

    node: str
    state: TaskState
    compensated: bool
    """Whether the restore compensates the node first; otherwise what the node did cannot be undone."""
