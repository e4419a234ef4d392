"""What the control plane tells of a workflow that it has: one row for the whole, for a node, an attempt, an approval.

Instants are milliseconds since the epoch, None where it did not come to that. What a newer control plane says beside
is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from coditect.errors import InvalidTask
from coditect.workflow.definition import After, Approval, Call, Definition, Node, OnFailure
from coditect.workflow.document import read_node
from coditect.workflow.states import TaskState, WorkflowState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """A workflow as a whole."""

    workflow: str
    name: str
    state: WorkflowState
    shard: int | None
    counts: Mapping[TaskState, int]
    """Its nodes by state; states that no node is in are left out."""
    total: int
    """How many nodes there are, the elements of its maps included."""
    accepted_at_ms: int | None
    finished_at_ms: int | None
    reason: str
    """Why it ended or stands still; empty where there is nothing to say."""
    key: str | None
    """The idempotency key that it was started with."""

    @property
    def ended(self) -> int:
        """How many nodes have ended, however."""
        return sum(count for state, count in self.counts.items() if state.terminal)

    @classmethod
    def read(cls, row: object) -> Self:
        """Raises: InvalidTask when it is no such row."""
        return _read(row, lambda given: cls(
            workflow=str(given["workflow"]),
            name=str(given.get("name") or ""),
            state=WorkflowState(given["state"]),
            shard=given.get("shard"),
            counts={TaskState(state): int(count) for state, count in (given.get("counts") or {}).items() if count},
            total=int(given.get("total") or 0),
            accepted_at_ms=given.get("accepted_at"),
            finished_at_ms=given.get("finished_at"),
            reason=str(given.get("reason") or ""),
            key=given.get("key"),
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node of a workflow, or an element of a map: `review[3]`."""

    name: str
    state: TaskState
    kind: str
    """task, map or approval."""
    after: tuple[str, ...]
    on_failure: Mapping[str, OnFailure]
    """What the edges from these predecessors do when they fail; the others fail the node, too."""
    definition: Mapping[str, Any]
    """Its other fields as a file has them, but for its input; empty for an element."""
    capability: str
    priority: str
    question: str
    """Of an approval."""
    attempt: int
    """The one that is under way, or was last, or comes next."""
    fence: int
    """Grows with every publication; 0 before the first."""
    agent: str
    """Who had it last; of an approval, who answered."""
    ready_at_ms: int | None
    published_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    reason: str
    message: str

    @classmethod
    def read(cls, row: object) -> Self:
        """Raises: InvalidTask when it is no such row."""
        return _read(row, lambda given: cls(
            name=str(given["name"]),
            state=TaskState(given["state"]),
            kind=str(given.get("kind") or "task"),
            after=tuple(str(name) for name in given.get("after") or ()),
            on_failure={str(name): OnFailure(policy) for name, policy in (given.get("on_failure") or {}).items()},
            definition=dict(given.get("definition") or {}),
            capability=str(given.get("capability") or ""),
            priority=str(given.get("priority") or ""),
            question=str(given.get("question") or ""),
            attempt=int(given.get("attempt") or 0),
            fence=int(given.get("fence") or 0),
            agent=str(given.get("agent") or ""),
            ready_at_ms=given.get("ready_at"),
            published_at_ms=given.get("published_at"),
            started_at_ms=given.get("started_at"),
            finished_at_ms=given.get("finished_at"),
            reason=str(given.get("reason") or ""),
            message=str(given.get("message") or ""),
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One publication of a node and what became of it."""

    node: str
    attempt: int
    fence: int
    publication: int
    agent: str
    published_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    status: str
    """completed, failed, canceled, rejected, or lost: nobody told its end; published or working while it goes on."""
    reason: str
    message: str

    @classmethod
    def read(cls, row: object) -> Self:
        """Raises: InvalidTask when it is no such row."""
        return _read(row, lambda given: cls(
            node=str(given["node"]),
            attempt=int(given.get("attempt") or 0),
            fence=int(given.get("fence") or 0),
            publication=int(given.get("publication") or 0),
            agent=str(given.get("agent") or ""),
            published_at_ms=given.get("published_at"),
            started_at_ms=given.get("started_at"),
            finished_at_ms=given.get("finished_at"),
            status=str(given.get("status") or ""),
            reason=str(given.get("reason") or ""),
            message=str(given.get("message") or ""),
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeadRow:
    """A node that was given up: its agents died until no attempt was left."""

    workflow: str
    node: NodeRow

    @classmethod
    def read(cls, row: object) -> Self:
        """Raises: InvalidTask when it is no such row."""
        return _read(row, lambda given: cls(str(given["workflow"]), NodeRow.read(given)))


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """A question that waits for its answer."""

    workflow: str
    node: str
    question: str
    name: str
    """The workflow's."""
    since_ms: int | None
    """When it was asked."""

    @classmethod
    def read(cls, row: object) -> Self:
        """Raises: InvalidTask when it is no such row."""
        return _read(row, lambda given: cls(
            workflow=str(given["workflow"]),
            node=str(given["node"]),
            question=str(given.get("question") or ""),
            name=str(given.get("name") or ""),
            since_ms=given.get("since"),
        ))  # fmt: skip


def definition_of(name: str, rows: Iterable[NodeRow]) -> Definition:
    """The graph that these rows are of, without inputs. Elements of maps are no nodes of it.

    Raises: InvalidWorkflow when the control plane knows fields that this version does not.
    """
    return Definition(name, tuple(_node_of(row) for row in rows if "[" not in row.name))


def _node_of(row: NodeRow) -> Node:
    edges = tuple(After(name, row.on_failure.get(name, OnFailure.FAIL)) for name in row.after)
    if row.definition:
        return replace(read_node(row.name, row.definition), after=edges)
    work = Approval(row.question or row.name) if row.kind == "approval" else Call(row.capability)
    return Node(row.name, work, edges)


def rows_of(answer: Mapping[str, Any], field: str) -> Sequence[object]:
    """The rows in an answer. Raises: InvalidTask when there are none such."""
    rows = answer.get(field)
    if not isinstance(rows, list):
        raise InvalidTask("The control plane's answer lacks its rows", field=field)
    return rows


def _read(row: object, make: Callable[[Mapping[str, Any]], T]) -> T:
    if not isinstance(row, Mapping):
        raise InvalidTask("A row of the control plane is an object", given=type(row).__name__)
    try:
        return make(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidTask("A row of the control plane is not what it should be", reason=repr(error)[:200]) from error
