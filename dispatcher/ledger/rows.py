"""The rows of the ledger: each is a JSON list, short, and readable with any FoundationDB tool.

`WorkflowRecord` and a node's definition never change. `RunRecord` and `NodeRecord` change: they are working copies of
one transaction, changed in place by the handlers and written back by the unit of work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.workflow.join import Tally
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.versions import ATTEMPT, RUN, STATUS, WORKFLOW

_STATES = {state.value: state for state in TaskState}
"""The states by value; a look-up here is three times as fast as a call of the enum."""


_ENDS = (
    (TaskState.FAILED, WorkflowState.FAILED),
    (TaskState.DEAD, WorkflowState.FAILED),
    (TaskState.REJECTED, WorkflowState.REJECTED),
    (TaskState.CANCELED, WorkflowState.CANCELED),
)


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """The part of a workflow that all of its nodes share; never changes."""

    shard: int
    name: str
    description: str
    key: str
    """The idempotency key; empty for none."""
    count: int
    """The number of nodes in the definition."""
    accepted_ms: int

    def pack(self) -> bytes:
        """Return the record as its row."""
        fields = [self.shard, self.name, self.description, self.key, self.count, self.accepted_ms]
        return WORKFLOW.pack(fields)

    @classmethod
    def unpack(cls, row: bytes) -> WorkflowRecord:
        """Return the record in a row."""
        return cls(*WORKFLOW.unpack(row))


@dataclass(slots=True)
class RunRecord:
    """The state of a workflow's run: the counts of its nodes by state, and whether it is canceled or finished."""

    state: WorkflowState = WorkflowState.ACCEPTED
    counts: dict[str, int] = field(default_factory=dict)
    """The number of nodes in each state, elements of maps included."""
    lasts: dict[str, int] = field(default_factory=dict)
    """The number of nodes without dependents that ended in each state: they decide how the workflow ends."""
    open: int = 0
    """The number of nodes that have not ended, elements of maps included."""
    canceling: bool = False
    reason: str = ""
    finished_ms: int | None = None
    todo: int = 0
    """The number of pieces of work left for later transactions; the workflow does not end before they are done."""
    again: bool = False
    """Whether ends of its nodes are being taken back: until that is done, no other end is passed on to dependents."""

    @property
    def end(self) -> WorkflowState:
        """The final state of the workflow once all nodes have ended: that of the nodes without dependents."""
        if self.canceling:
            return WorkflowState.CANCELED
        return next((end for state, end in _ENDS if self.lasts.get(state.value)), WorkflowState.COMPLETED)

    def pack(self) -> bytes:
        """Return the record as its row."""
        counts = {state: count for state, count in self.counts.items() if count}
        lasts = {state: count for state, count in self.lasts.items() if count}
        fields = [self.state.value, counts, lasts, self.open, self.canceling, self.reason, self.finished_ms, self.todo]
        return RUN.pack([*fields, True] if self.again else fields)

    @classmethod
    def unpack(cls, row: bytes) -> RunRecord:
        """Return the record in a row."""
        state, *others = RUN.unpack(row)
        return cls(WorkflowState(state), *others)


@dataclass(slots=True)
class NodeRecord:
    """The progress of a node; instants are milliseconds since the epoch."""

    state: TaskState
    needed: int = 0
    open: int = 0
    met: int = 0
    worst: TaskState | None = None
    attempt: int = 1
    """The number of the attempt that runs or comes next, from 1."""
    fence: int = 0
    publication: int = 0
    agent: str = ""
    ready_ms: int | None = None
    published_ms: int | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    reason: str = ""
    suspect: bool = False
    """Whether an agent that had started the node is gone: from now on the node runs in a process of its own."""
    own_input: bool = False
    """Whether the node's input is recorded, made by an expression or given with a redrive."""
    start_by_ms: int | None = None
    """The latest start of the waiting attempt; unchanged after the attempt has started."""
    deadline_ms: int | None = None
    """The instant by which all attempts must have ended."""
    heartbeat_ms: int | None = None
    """The permitted silence of the node's agent, if its definition sets one.

    The orphan detector reads no definitions.
    """

    @property
    def tally(self) -> Tally:
        """How many of the node's predecessors ended, by how they ended."""
        return Tally(self.needed, self.open, self.met, self.worst)

    @tally.setter
    def tally(self, tally: Tally) -> None:
        self.needed, self.open, self.met, self.worst = tally.needed, tally.open, tally.met, tally.worst

    def pack(self) -> bytes:
        """Return the record as its row, which ends with the last field that is set; the attempt always is."""
        fields = [
            self.state.value,
            self.needed,
            self.open,
            self.met,
            self.worst.value if self.worst is not None else None,
            self.attempt,
            self.fence,
            self.publication,
            self.agent,
            self.ready_ms,
            self.published_ms,
            self.started_ms,
            self.finished_ms,
            self.reason,
            self.suspect,
            self.own_input,
            self.start_by_ms,
            self.deadline_ms,
            self.heartbeat_ms,
        ]
        while not fields[-1]:
            fields.pop()
        return STATUS.pack(fields)

    @classmethod
    def unpack(cls, row: bytes) -> NodeRecord:
        """Return the record in a row."""
        fields = STATUS.unpack(row)
        fields[0] = _STATES[fields[0]]
        if fields[4] is not None:
            fields[4] = _STATES[fields[4]]
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """The record of an attempt that another attempt followed; a node's last attempt is in the node's own row."""

    attempt: int
    fence: int
    publication: int
    agent: str
    published_ms: int | None
    started_ms: int | None
    finished_ms: int | None
    status: str
    """One of completed, failed, canceled, rejected, or lost, when no end was reported."""
    reason: str = ""
    message: str = ""

    def pack(self) -> bytes:
        """Return the record as its row."""
        return ATTEMPT.pack(
            [
                self.attempt,
                self.fence,
                self.publication,
                self.agent,
                self.published_ms,
                self.started_ms,
                self.finished_ms,
                self.status,
                self.reason,
                self.message,
            ]
        )

    @classmethod
    def unpack(cls, row: bytes) -> AttemptRecord:
        """Return the record in a row."""
        return cls(*ATTEMPT.unpack(row))
