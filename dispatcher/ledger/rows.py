"""The ledger's records of workflows, runs, nodes and attempts, and their rows in the store as short JSON lists.

`WorkflowRecord` and a node's definition never change. `RunRecord` and `NodeRecord` change: they are working copies of
one transaction, changed in place by the handlers and written back by the unit of work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.states import Tally, TaskState, WorkflowState
from dispatcher.ledger.keyspace import ENDED, EXPIRIES, LIVE, STATUSES
from dispatcher.ledger.versions import ATTEMPT, RUN, STATUS, WORKFLOW_HEAD
from dispatcher.store.transaction import KeyValue, Reads, Transaction

_STATES = {state.value: state for state in TaskState}
"""The task states by their text in rows; a look-up here is three times as fast as a call of the enum."""
_NO_EDGES = Tally(0, 0)
MAX_WORKFLOWS_READ = 64
"""The most live workflows whose rows one read returns."""
MAX_ROWS_READ = 500
"""The most rows of one workflow that one read returns."""
_ACTIVE_STATES = (TaskState.READY, TaskState.PUBLISHED, TaskState.WORKING)
_ACTIVE = tuple(STATUS.pack([state.value])[:-1] for state in _ACTIVE_STATES)

_ENDS = (
    (TaskState.FAILED, WorkflowState.FAILED),
    (TaskState.DEAD, WorkflowState.FAILED),
    (TaskState.REJECTED, WorkflowState.REJECTED),
    (TaskState.CANCELED, WorkflowState.CANCELED),
)


@dataclass(frozen=True, slots=True)
class ParentNode:
    """The node that runs a workflow as its child."""

    workflow: str
    node: str
    root: str
    """The id of the workflow that a client or a schedule started, and that has the definitions of all children."""
    depth: int
    """The number of workflows above the child: 1 for a child of the root."""


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """The fixed part of a workflow, which all of its nodes share and which never changes after the submission."""

    shard: int
    name: str
    description: str
    key: str
    """The idempotency key of the workflow's submission; empty for none."""
    count: int
    """The number of nodes in the workflow's definition, without elements of maps."""
    accepted_ms: int
    labels: Mapping[str, str] = field(default_factory=dict)
    keep_ms: int | None = None
    """How long the workflow is kept after its end; None means as long as the dispatcher's setting says."""
    parent: ParentNode | None = None
    """The node of another workflow that runs this one as its child; None for a workflow that is no child."""

    def note_end(self, tr: Transaction, workflow: str, finished_ms: int) -> None:
        """Add the workflow to the index of ended workflows, and to that of expiry times if it has its own retention."""
        tr.set(ENDED.pack((self.shard, finished_ms, workflow)), b"")
        if self.keep_ms is not None:
            tr.set(EXPIRIES.pack((self.shard, finished_ms + self.keep_ms, workflow)), b"")

    def forget_end(self, tr: Transaction, workflow: str, finished_ms: int) -> None:
        """Remove the index entries that `note_end` added, because the workflow goes on or is removed."""
        tr.clear(ENDED.pack((self.shard, finished_ms, workflow)))
        if self.keep_ms is not None:
            tr.clear(EXPIRIES.pack((self.shard, finished_ms + self.keep_ms, workflow)))

    def pack(self) -> bytes:
        """Encode the workflow record as its row in the store."""
        fields = [self.shard, self.name, self.description, self.key, self.count, self.accepted_ms]
        parent = self.parent and astuple(self.parent)
        return WORKFLOW_HEAD.pack([*fields, self.labels, self.keep_ms, parent])

    @classmethod
    def unpack(cls, row: bytes) -> WorkflowRecord:
        """Decode a row of the store to a workflow record."""
        fields = WORKFLOW_HEAD.unpack(row)
        fields[-1] = fields[-1] and ParentNode(*fields[-1])
        return cls(*fields)


@dataclass(slots=True)
class RunRecord:
    """The row of a workflow's progress: its state, the counts of its nodes by state, and its unfinished work."""

    state: WorkflowState = WorkflowState.ACCEPTED
    counts: dict[str, int] = field(default_factory=dict)
    """The number of the workflow's nodes in each state, elements of maps included."""
    lasts: dict[str, int] = field(default_factory=dict)
    """The number of nodes without dependents that ended in each state; they decide the workflow's final state."""
    open: int = 0
    """The number of the workflow's nodes that have not ended, elements of maps included."""
    canceling: bool = False
    reason: str = ""
    finished_ms: int | None = None
    todo: int = 0
    """The number of unfinished pieces of work left for later transactions; the workflow ends after them."""
    redriving: bool = False
    """Whether a redrive still resets nodes of the workflow, so that no node's end is passed on to dependents."""
    to_compensate: int = 0
    """The number of completed nodes with a compensation that has not completed."""
    ended: WorkflowState | None = None
    """The state in which the workflow ended before its compensation began; None before that."""
    keeps: bool = False
    """Whether a cancel asked to leave completed nodes as they are, without a compensation."""
    checkpoint_ms: int = 0
    """The instant of the last named checkpoint; every node that ends after the checkpoint ends at a later instant."""
    restoring: list[Any] | None = None
    """The restore under way: the fields of its position, its author, and whether the workflow was paused."""
    children: int = 0
    """The number of children that were begun below a root workflow, children of its children included."""
    trace: dict[str, Any] = field(default_factory=dict)
    """The trace headers of the request that started the workflow, which the tasks of its nodes carry on.

    They never change, and are here all the same: every publication of a node has this row in hand.
    """
    by_hand: int = 0
    """The number of actions by which persons had a hand in the workflow, such as answers and redrives."""

    def after_checkpoint(self, now_ms: int) -> int:
        """Return the present time, but at least one millisecond after the workflow's last named checkpoint."""
        return max(now_ms, self.checkpoint_ms + 1)

    @property
    def end(self) -> WorkflowState:
        """The state in which a workflow ends: by its compensation or cancel, or else by its nodes without dependents.

        Once its compensation has begun, the state tells how the compensation ended.
        """
        if self.ended is not None:
            return WorkflowState.COMPENSATION_FAILED if self.to_compensate else WorkflowState.COMPENSATED
        if self.canceling:
            return WorkflowState.CANCELED
        return next((end for state, end in _ENDS if self.lasts.get(state.value)), WorkflowState.COMPLETED)

    def pack(self) -> bytes:
        """Encode the run record as its row in the store."""
        counts = {state: count for state, count in self.counts.items() if count}
        lasts = {state: count for state, count in self.lasts.items() if count}
        fields = [self.state.value, counts, lasts, self.open, self.canceling, self.reason, self.finished_ms, self.todo]
        later: list[Any] = [self.redriving, self.to_compensate, self.ended, self.keeps, self.checkpoint_ms]
        later += [self.restoring, self.children, self.trace, self.by_hand]
        return RUN.pack([*fields, *later] if any(later) else fields)

    @classmethod
    def unpack(cls, row: bytes) -> RunRecord:
        """Decode a row of the store to a run record."""
        state, *others = RUN.unpack(row)
        run = cls(WorkflowState(state), *others)
        run.ended = None if run.ended is None else WorkflowState(run.ended)
        return run


@dataclass(slots=True)
class NodeRecord:
    """The progress of a node: its state, attempt, fence and limits; instants are Unix times in milliseconds."""

    state: TaskState
    tally: Tally = _NO_EDGES
    """The count of the node's predecessors that have ended, by the way in which they ended."""
    attempt: int = 1
    """The number of the attempt that runs or comes next, counted from 1."""
    fence: int = 0
    publication: int = 0
    agent: str = ""
    ready_ms: int | None = None
    published_ms: int | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    reason: str = ""
    suspect: bool = False
    """Whether an agent that had started the node has died: from then on the node runs in a process of its own."""
    own_input: bool = False
    """Whether the node has an input of its own in the store, from an expression or a redrive."""
    start_by_ms: int | None = None
    """The latest instant at which the waiting attempt may start; kept unchanged once the attempt has started."""
    deadline_ms: int | None = None
    """The instant by which all attempts of the node must have ended."""
    heartbeat_ms: int | None = None
    """The longest time between two reports of the node's agent, if the node's definition limits it.

    The orphan detector reads this row, and no definitions.
    """
    destination: str | None = None
    """The routing key of the node's task, kept while the node is ready, published or working.

    Who takes the shard over needs no definition of such a node.
    """
    by_hand: bool = False
    """Whether a person answered the node's question, or had the node run again."""
    capability: str = ""
    """The capability that the task was handed off to; empty while it is the one of the node's definition."""
    handoffs: int = 0
    """How often an agent has taken the running task over from another one."""
    doubted: Sequence[Sequence[Any]] = ()
    """The attempts, as agent and fence, that other agents took over and whose agents may have died of them."""
    losses: int = 0
    """How often in a row an attempt was lost or broken off, and its agent lived or ended in an orderly way."""

    def pack(self) -> bytes:
        """Encode the node record as its row in the store, without the unset fields at the end."""
        tally = self.tally
        fields = [
            self.state.value,
            tally.needed,
            tally.open,
            tally.met,
            tally.worst.value if tally.worst is not None else None,
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
            self.destination if self.state in _ACTIVE_STATES else None,
        ]
        if self.by_hand or self.handoffs or self.doubted or self.losses:  # few nodes have any of these
            fields += [self.by_hand, self.capability, self.handoffs, self.doubted, self.losses]
        while not fields[-1]:
            fields.pop()
        return STATUS.pack(fields)

    @classmethod
    def unpack(cls, row: bytes) -> NodeRecord:
        """Decode a row of the store to a node record."""
        state, needed, left, met, worst, *others = STATUS.unpack(row)
        return cls(_STATES[state], Tally(needed, left, met, None if worst is None else _STATES[worst]), *others)


def may_be_active(row: bytes) -> bool:
    """Tell without decoding a node's row whether the node is ready, published or working, or written in a newer way."""
    return row.startswith(_ACTIVE) or row[:1].isdigit()


def live_rows(tr: Reads, shard: int, after: tuple[str, str] = ("", "")) -> Iterator[KeyValue]:
    """Yield the keys and rows of all nodes of a shard's live workflows, in the order of the keys, behind a node."""
    if after[1]:
        yield from _rows_behind(tr, *after)
    begin, end = LIVE.behind((shard,), after[:1])
    while page := tr.get_range(begin, end, limit=MAX_WORKFLOWS_READ):
        workflows = [str(LIVE.unpack(key)[1]) for key, _ in page]
        found = tr.get_ranges([STATUSES.range((workflow,)) for workflow in workflows], limit=MAX_ROWS_READ)
        for workflow, rows in zip(workflows, found, strict=True):
            yield from rows
            if len(rows) == MAX_ROWS_READ:
                yield from _rows_behind(tr, workflow, str(STATUSES.unpack(rows[-1][0])[1]))
        begin = page[-1][0] + b"\0"


def _rows_behind(tr: Reads, workflow: str, node: str) -> Iterator[KeyValue]:
    begin, end = STATUSES.behind((workflow,), (node,))
    while rows := tr.get_range(begin, end, limit=MAX_ROWS_READ):
        yield from rows
        begin = rows[-1][0] + b"\0"


def pack_attempt(attempt: AttemptRow) -> bytes:
    """Encode an attempt in a node's history as its row in the store, without the node; the latest is in the node's."""
    return ATTEMPT.pack(astuple(attempt)[1:])


def unpack_attempt(node: str, row: bytes) -> AttemptRow:
    """Decode a row of the store to an attempt of the given node."""
    return AttemptRow(node, *ATTEMPT.unpack(row))
