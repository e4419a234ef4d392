"""The effects of a transaction outside of the store, such as messages to publish, applied after the commit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias

from coditect.model.message import Message, value
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Task
from coditect.wire.json import dumps
from coditect.wire.routing import reply_address
from coditect.wire.tasks import result_message
from coditect.workflow.definition import COMPENSATION, Call, Node, OnFailure, defined_name
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.rows import RunRecord

_FAIL = OnFailure.FAIL
Defined: TypeAlias = tuple[bytes, Node | None]
"""A node's definition as stored bytes, and the parsed node, or None when it was not parsed."""


class NodeKey(NamedTuple):
    """The key of a workflow's node: the id of the workflow and the name of the node."""

    workflow: str
    node: str

    @property
    def task_id(self) -> str:
        """The id of the node's task, which is also its idempotency key: the same for all attempts."""
        return f"{self.workflow}:{self.node}"

    @property
    def defined(self) -> NodeKey:
        """The key of the node that defines this one: of `ship`, `ship[3]` and `ship.compensate` it is `ship`."""
        return NodeKey(self.workflow, defined_name(self.node))

    def element(self, number: int) -> NodeKey:
        """Return the key of the node that runs a map's element `number`, counted from 0."""
        return NodeKey(self.workflow, f"{self.node}[{number}]")

    @property
    def is_element(self) -> bool:
        """True if the node runs an element of a map: `review[3]`."""
        return self.node.endswith("]")

    @property
    def is_derived(self) -> bool:
        """True if the node is an element or a compensation, which the workflow's definition does not name."""
        return self.node.endswith(("]", COMPENSATION))

    @property
    def compensated(self) -> NodeKey:
        """The key of the node that a compensation undoes: of `ship.compensate` it is `ship`."""
        return NodeKey(self.workflow, self.node.removesuffix(COMPENSATION))

    @property
    def is_compensation(self) -> bool:
        """True if the node compensates another one: `ship.compensate`."""
        return self.node.endswith(COMPENSATION)


@value
class Publication:
    """A node's task that is to be published; its outbox row is removed once the broker has confirmed the task."""

    node_key: NodeKey
    number: int
    task: Task
    agent: str = ""
    """The free agent that has just ended a predecessor of the node, and gets the task; empty for any agent."""
    before: int = 0
    """The number of the node's previous publication; 0 when there was none."""


@value
class Transition:
    """A change of a node's state in a transaction, with the node's row as the transaction leaves it."""

    node_key: NodeKey
    state: TaskState
    capability: str
    """The name of the capability that the node calls; empty for an approval."""
    level: str
    row: Any
    """The node's row as the transaction leaves it."""


@value
class NodeSnapshot:
    """A node's state after a transaction, with everything that RQ's copy of the node shows."""

    node_key: NodeKey
    state: TaskState
    capability: str
    level: str
    after: tuple[str, ...]
    """The predecessors, if the node runs once all of them complete; empty for any other rule."""
    timeout_ms: int | None = None

    @classmethod
    def of(cls, node_key: NodeKey, state: TaskState, node: Node) -> Self:
        """Return the snapshot of a node in the given state, from its definition."""
        call = node.call
        plain = node.join == "all" and node.when is None and all(edge.on_failure is _FAIL for edge in node.after)
        after = tuple(edge.node for edge in node.after) if plain and isinstance(node.work, Call) else ()
        if call is None:
            return cls(node_key, state, node.title, "", after)
        return cls(node_key, state, call.capability, call.priority.value, after, call.timeout_ms)


@value
class OutgoingMessage:
    """A message to agents or clients, published after the commit.

    The message may be lost, so a process that waits for it also asks again from time to time.
    """

    message: Message
    exchange: str
    routing_key: str


class WorkflowEnd(NamedTuple):
    """The report of a workflow's end: final state, duration, name, whether a person acted on it, or it is a child."""

    state: WorkflowState
    took_ms: int
    """The milliseconds from the workflow's acceptance to its end."""
    by_hand: bool = False
    """Whether a person acted on the workflow, such as by an answer or a redrive."""
    is_child: bool = False
    name: str = ""


class EndedWait(NamedTuple):
    """The end of a node's wait for an approval, a signal or an instant (`time`), for the trace of its workflow."""

    node_key: NodeKey
    kind: str
    since_ms: int
    facts: dict[str, str]
    """What is known of the end, such as the decision about an approval and its author."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An event about a workflow, or another subject such as a lock or a breaker, to be published to listeners."""

    type: str
    workflow: str
    facts: dict[str, Any]


@dataclass(slots=True)
class Effects:
    """The effects of one try of a transaction outside of the store, such as messages to publish after its commit.

    Each kind is in the order in which the try caused it.
    """

    publications: list[Publication] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    waiting: set[NodeKey] = field(default_factory=set)
    """The nodes that became ready and wait for room; a paused workflow's ready nodes wait for its resume instead."""
    results: dict[NodeKey, bytes] = field(default_factory=dict)
    """The encoded results of the nodes that completed in the transaction."""
    failures: dict[NodeKey, Failure] = field(default_factory=dict)
    """The failures of the nodes that ended without a result in the transaction, where the failure is known."""
    notices: list[Notice] = field(default_factory=list)
    snapshots: list[NodeSnapshot] = field(default_factory=list)
    adopted: set[NodeKey] = field(default_factory=set)
    """The nodes that RQ proposed and the transaction claimed: RQ has their jobs as started already."""
    proposed: list[NodeKey] = field(default_factory=list)
    """The nodes that RQ proposed and that the transaction left for a later transaction to examine."""
    accepted: list[str] = field(default_factory=list)
    """The ids of the workflows that the transaction accepted, and that run from now on."""
    unshown: list[str] = field(default_factory=list)
    """The ids of workflows whose nodes later transactions have to send to RQ: large, submitted twice, or reopened."""
    runs: list[tuple[str, RunRecord]] = field(default_factory=list)
    """The ids and rows of the workflows that the transaction used, as it leaves them."""
    cancels: list[tuple[NodeKey, int]] = field(default_factory=list)
    """The nodes and publication numbers to cancel: the agents that may run them get a cancel message."""
    messages: list[OutgoingMessage] = field(default_factory=list)
    """The messages to agents and clients that say what the transaction did, such as the grant of a lock."""
    waits: list[EndedWait] = field(default_factory=list)
    """The nodes' waits that ended in the transaction, those among them that the policy ended at once."""
    ended: list[WorkflowEnd] = field(default_factory=list)
    """The ends of the workflows that ended in the transaction."""
    tick_delays_ms: list[int] = field(default_factory=list)
    """How long after its instant each due tick of a schedule was carried out."""
    late: int = 0
    """The number of results that were refused, because their fence is older than the node's."""
    strange: int = 0
    """The number of results that were dropped, because the ledger has no such node."""
    evaluations: list[tuple[NodeKey, str]] = field(default_factory=list)
    """Nodes whose expressions are to be evaluated outside of a transaction, with the token for `advance.evaluated`."""
    definitions: dict[NodeKey, Defined | None] = field(default_factory=dict)
    """Definitions that the transaction read or wrote, for the cache; None for the nodes that ended in it."""
    unfinished: bool = False
    """Whether the transaction left work for a later one."""
    due_ms: float = math.inf
    """The instant of the first of the timers that were set, in milliseconds since the epoch; infinite without any."""

    def say(self, type_: str, workflow: str, **facts: Any) -> None:
        """Add an event about a workflow, or another subject such as a breaker, to be published after the commit."""
        self.notices.append(Notice(type_, workflow, facts))

    def push(self, reply_to: str, ticket: str, news: dict[str, Any]) -> None:
        """Send news to the process that waits with a ticket, after the commit; if they are lost, it asks later."""
        address = reply_address(reply_to)
        if address is not None and address.exchange:
            message = result_message(Outcome(Status.COMPLETED, dumps(news), None, ticket), capability="control")
            self.messages.append(OutgoingMessage(message, address.exchange, address.routing_key))
