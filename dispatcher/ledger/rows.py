"""The ledger's rows. A row is a JSON list in the store: short, and readable with any FoundationDB tool.

`WorkflowRecord` and a node's definition never change. `RunRecord` and `NodeRecord` are what changes: working copies of
one transaction, changed in place by the handlers and written back by the unit of work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.workflow.join import Tally
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.versions import ATTEMPT, RUN, STATUS, WORKFLOW

_STATES = {state.value: state for state in TaskState}
"""Looked up three times as fast as by a call of the enum."""


_ENDS = (
    (TaskState.FAILED, WorkflowState.FAILED),
    (TaskState.DEAD, WorkflowState.FAILED),
    (TaskState.REJECTED, WorkflowState.REJECTED),
    (TaskState.CANCELED, WorkflowState.CANCELED),
)


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """What a workflow's nodes share; never changes."""

    shard: int
    name: str
    description: str
    key: str
    """Idempotency key; empty for none."""
    count: int
    """Nodes in its definition."""
    accepted_ms: int

    def pack(self) -> bytes:
        """The row."""
        fields = [self.shard, self.name, self.description, self.key, self.count, self.accepted_ms]
        return WORKFLOW.pack(fields)

    @classmethod
    def unpack(cls, row: bytes) -> WorkflowRecord:
        """From the row."""
        return cls(*WORKFLOW.unpack(row))


@dataclass(slots=True)
class RunRecord:
    """Where a workflow is."""

    state: WorkflowState = WorkflowState.ACCEPTED
    counts: dict[str, int] = field(default_factory=dict)
    """How many nodes, the elements of maps among them, are in each state."""
    lasts: dict[str, int] = field(default_factory=dict)
    """How the nodes ended that nobody comes after: they decide how the workflow ends."""
    open: int = 0
    """Nodes that have not ended, elements among them."""
    canceling: bool = False
    reason: str = ""
    finished_ms: int | None = None
    todo: int = 0
    """Pieces of work that are left over for later transactions; it does not end before they are done."""
    again: bool = False
    """Ends of its nodes are being taken back: until that is done no other is told to dependents."""

    @property
    def end(self) -> WorkflowState:
        """How it ends when its last node has: as those did that nobody comes after."""
        if self.canceling:
            return WorkflowState.CANCELED
        return next((end for state, end in _ENDS if self.lasts.get(state.value)), WorkflowState.COMPLETED)

    def pack(self) -> bytes:
        """The row."""
        counts = {state: count for state, count in self.counts.items() if count}
        lasts = {state: count for state, count in self.lasts.items() if count}
        fields = [self.state.value, counts, lasts, self.open, self.canceling, self.reason, self.finished_ms, self.todo]
        return RUN.pack([*fields, True] if self.again else fields)

    @classmethod
    def unpack(cls, row: bytes) -> RunRecord:
        """From the row."""
        state, *others = RUN.unpack(row)
        return cls(WorkflowState(state), *others)


@dataclass(slots=True)
class NodeRecord:
    """Where a node is. Instants are milliseconds since the epoch."""

    state: TaskState
    needed: int = 0
    open: int = 0
    met: int = 0
    worst: TaskState | None = None
    attempt: int = 1
    """The one that runs, or comes next."""
    fence: int = 0
    publication: int = 0
    agent: str = ""
    ready_ms: int | None = None
    published_ms: int | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    reason: str = ""
    suspect: bool = False
    """It had started on an agent that is gone: it runs in a process of its own from now on."""
    own_input: bool = False
    """Its input is recorded: an expression made it, or a redrive."""
    start_by_ms: int | None = None
    """When the attempt that waits is to be started at the latest; stays as it was of one that was started."""
    deadline_ms: int | None = None
    """When all of its attempts are to have ended."""
    heartbeat_ms: int | None = None
    """How long its agent may be silent, where its definition says so: for the patrol, which has no definitions."""

    @property
    def tally(self) -> Tally:
        """Its edges, counted."""
        return Tally(self.needed, self.open, self.met, self.worst)

    @tally.setter
    def tally(self, tally: Tally) -> None:
        self.needed, self.open, self.met, self.worst = tally.needed, tally.open, tally.met, tally.worst

    def pack(self) -> bytes:
        """The row, up to the last field that says something; the attempt always does."""
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
        """From the row."""
        fields = STATUS.unpack(row)
        fields[0] = _STATES[fields[0]]
        if fields[4] is not None:
            fields[4] = _STATES[fields[4]]
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt. In the store only those that others followed: the last one stands in the node's own row."""

    attempt: int
    fence: int
    publication: int
    agent: str
    published_ms: int | None
    started_ms: int | None
    finished_ms: int | None
    status: str
    """completed, failed, canceled, rejected; or lost: nobody told its end."""
    reason: str = ""
    message: str = ""

    def pack(self) -> bytes:
        """The row."""
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
        """From the row."""
        return cls(*ATTEMPT.unpack(row))
