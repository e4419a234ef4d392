"""What follows from a transaction outside of the store, once it is committed."""

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
"""A node's definition as it is stored, and what it says if that was read."""


class NodeKey(NamedTuple):
    """A node of a workflow."""

    workflow: str
    node: str

    @property
    def task_id(self) -> str:
        """The id of its task: its idempotency key, the same over all attempts."""
        return f"{self.workflow}:{self.node}"


@value
class Publication:
    """A task to be published; its outbox row is cleared once the broker has it."""

    node_key: NodeKey
    number: int
    task: Task
    agent: str = ""
    """Who has just ended what comes before it and has nothing else to do; empty for whoever takes it first."""


@value
class Transition:
    """A node that changed its state."""

    node_key: NodeKey
    state: TaskState
    capability: str
    """Empty for an approval."""
    level: str
    row: Any
    """The node's row as it is after the transaction."""


@value
class NodeSnapshot:
    """A node as it is after the transaction, for whoever keeps a copy of the graph."""

    node_key: NodeKey
    state: TaskState
    capability: str
    level: str
    after: tuple[str, ...]
    """All of which must complete before it may run; empty where that is not what its edges say."""
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """An event for whoever listens."""

    type: str
    workflow: str
    facts: dict[str, Any]


@dataclass(slots=True)
class Effects:
    """All that follows, in order. Filled by the verbs within one try of a transaction."""

    publications: list[Publication] = field(default_factory=list)
    moved: list[Transition] = field(default_factory=list)
    results: dict[NodeKey, bytes] = field(default_factory=dict)
    """The values of nodes that have one now."""
    failures: dict[NodeKey, Failure] = field(default_factory=dict)
    """Why nodes ended without one, where it was told."""
    notices: list[Notice] = field(default_factory=list)
    shown: list[NodeSnapshot] = field(default_factory=list)
    adopted: set[NodeKey] = field(default_factory=set)
    """Nodes that RQ proposed and that were claimed: it has them as started already."""
    proposed: list[NodeKey] = field(default_factory=list)
    """Nodes that RQ proposed and that are left for another transaction."""
    accepted: list[str] = field(default_factory=list)
    """Workflows that run from now on."""
    unshown: list[str] = field(default_factory=list)
    """Those of them that came in several pieces, and those that begin again after their end: all of their nodes are to
    be shown by later transactions."""
    runs: list[tuple[str, RunRecord]] = field(default_factory=list)
    """The rows of workflows, as they are by now."""
    cancels: list[tuple[NodeKey, int]] = field(default_factory=list)
    """Agents that may run these publications are to be told."""
    late: int = 0
    """Results that a fence refused."""
    strange: int = 0
    """Results of nodes that nobody knows."""
    evaluations: list[tuple[NodeKey, str]] = field(default_factory=list)
    """Nodes whose expressions are to be evaluated, with what is said of them when they are (`advance.evaluated`)."""
    definitions: dict[NodeKey, Defined | None] = field(default_factory=dict)
    """Definitions that were read or written, to be remembered; None of the nodes that ended."""
    unfinished: bool = False
    """There is work left over for another transaction."""
    timers: bool = False
    """A timer was set: it may be due sooner than the one that is waited for."""

    def say(self, type_: str, workflow: str, **facts: Any) -> None:
        """Adds an event."""
        self.notices.append(Notice(type_, workflow, facts))
