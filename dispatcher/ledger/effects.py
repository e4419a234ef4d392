"""The effects of a transaction outside of the store, applied after the commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from coditect.model.result import Failure
from coditect.model.task import Task
from coditect.model.value import value
from coditect.workflow.definition import Node
from coditect.workflow.states import TaskState
from dispatcher.ledger.rows import RunRecord

Defined: TypeAlias = tuple[bytes, Node | None]
"""A node's definition as it is stored, and the parsed node if it was parsed."""


class NodeKey(NamedTuple):
    """The key of a node: the ids of its workflow and of the node in it."""

    workflow: str
    node: str

    @property
    def task_id(self) -> str:
        """The id of the node's task, which is its idempotency key, too: the same for all attempts."""
        return f"{self.workflow}:{self.node}"


@value
class Publication:
    """A task to be published; its outbox row is cleared once the broker has the task."""

    node_key: NodeKey
    number: int
    task: Task
    agent: str = ""
    """The agent that has just ended a predecessor of the node and is free; empty for any agent."""


@value
class Transition:
    """A change of a node's state, with the node's row after it."""

    node_key: NodeKey
    state: TaskState
    capability: str
    """The name of the called capability; empty for an approval."""
    level: str
    row: Any
    """The node's row after the transaction."""


@value
class NodeSnapshot:
    """The state of a node after a transaction, with all that RQ's copy of the node shows."""

    node_key: NodeKey
    state: TaskState
    capability: str
    level: str
    after: tuple[str, ...]
    """The nodes that must all complete before this one may run; empty when the edges say anything else."""
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """An event about a workflow, to publish to listeners."""

    type: str
    workflow: str
    facts: dict[str, Any]


@dataclass(slots=True)
class Effects:
    """The effects of one try of a transaction, each kind in the order in which the try caused them."""

    publications: list[Publication] = field(default_factory=list)
    moved: list[Transition] = field(default_factory=list)
    results: dict[NodeKey, bytes] = field(default_factory=dict)
    """The results of nodes that got one."""
    failures: dict[NodeKey, Failure] = field(default_factory=dict)
    """The failures of nodes that ended without a result, where the failure is known."""
    notices: list[Notice] = field(default_factory=list)
    shown: list[NodeSnapshot] = field(default_factory=list)
    adopted: set[NodeKey] = field(default_factory=set)
    """Nodes that RQ proposed and that were claimed: RQ has them as started already."""
    proposed: list[NodeKey] = field(default_factory=list)
    """Nodes that RQ proposed and that are left for another transaction."""
    accepted: list[str] = field(default_factory=list)
    """Workflows that run from now on."""
    unshown: list[str] = field(default_factory=list)
    """Workflows whose nodes later transactions have to show: accepted in several chunks, or twice, or reopened."""
    runs: list[tuple[str, RunRecord]] = field(default_factory=list)
    """The rows of workflows after the transaction."""
    cancels: list[tuple[NodeKey, int]] = field(default_factory=list)
    """Publications to cancel: the agents that may run them get a cancel message."""
    late: int = 0
    """The number of results that a fence refused."""
    strange: int = 0
    """The number of results of unknown nodes."""
    evaluations: list[tuple[NodeKey, str]] = field(default_factory=list)
    """Nodes whose expressions are to be evaluated, with the token to give to `advance.evaluated`."""
    definitions: dict[NodeKey, Defined | None] = field(default_factory=dict)
    """Definitions that were read or written, to be cached; None for the nodes that ended."""
    unfinished: bool = False
    """Whether work is left over for another transaction."""
    timers: bool = False
    """Whether a timer was set, which may be due before the timer that the timer service waits for."""

    def say(self, type_: str, workflow: str, **facts: Any) -> None:
        """Add an event about a workflow, to be published after the commit."""
        self.notices.append(Notice(type_, workflow, facts))
