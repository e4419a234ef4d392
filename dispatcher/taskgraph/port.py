"""The port `TaskGraph` over the jobs that show workflows in RQ, whose adapter is `redis`.

Every call is idempotent: it may be repeated after an error, and after a crash from an earlier point on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from coditect.errors import Retryable
from coditect.model.capability import Priority
from coditect.model.message import value
from coditect.workflow.states import TaskState

BATCH = 500
"""The most jobs that one Lua script creates, changes or adopts, since Redis does nothing else meanwhile."""

MOST_RESULT_BYTES = 1_024
"""The largest result that is copied into a job in RQ; a larger one is only in the ledger."""

PIECE = 64
"""The number of jobs further back in a queue that each `adopt` examines beside the first ones."""


class TaskGraphUnavailable(Retryable):
    """The error of a task graph call that RQ's Redis refused or did not answer in time; repeat the same call."""


def looks(room: int) -> int:
    """Return how many jobs at the heads of one priority's queues `adopt` examines at most, to take `room` jobs."""
    return min(2 * BATCH, PIECE + 4 * room)


class JobState(StrEnum):
    """The state of a job in RQ, by RQ's own names."""

    DEFERRED = "deferred"
    """The state of a job that waits for predecessors, and is enqueued when all of them are finished."""
    SCHEDULED = "scheduled"
    """The state of a job that waits for a time or a person; only a `Change` moves the job."""
    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"


_PLACES = {
    TaskState.BLOCKED: JobState.DEFERRED,
    TaskState.READY: JobState.QUEUED,
    TaskState.PUBLISHED: JobState.STARTED,
    TaskState.WORKING: JobState.STARTED,
    TaskState.RETRY_WAIT: JobState.SCHEDULED,
    TaskState.AWAITING_APPROVAL: JobState.SCHEDULED,
    TaskState.WAITING: JobState.SCHEDULED,
    TaskState.COMPLETED: JobState.FINISHED,
    TaskState.FAILED: JobState.FAILED,
    TaskState.CANCELED: JobState.CANCELED,
    TaskState.REJECTED: JobState.FAILED,
    TaskState.SKIPPED: JobState.CANCELED,
    TaskState.DEAD: JobState.FAILED,
}


def job_state(state: TaskState) -> JobState:
    """Return the state in RQ of the job of a node that has the given state in the ledger."""
    return _PLACES[state]


@value
class Job:
    """The job that RQ should have for a node of a workflow, with its queue, predecessors and state."""

    workflow: str
    """The workflow's id: a UUID, or another text of letters, digits and hyphens."""
    node: str
    shard: int
    level: Priority
    capability: str
    """The node's capability, without a space; the job's description in RQ ends with the capability."""
    after: tuple[str, ...]
    """The nodes of the same workflow that must all be finished before RQ enqueues the job.

    Empty where RQ cannot express the condition (any, k of n, `when`, an edge that allows failure): such a job is
    deferred until a change enqueues it.
    """
    state: JobState
    timeout_ms: int | None = None

    def as_change(self) -> Change:
        """Return the change that sets the job to this state, whatever state it has in RQ."""
        return Change(self.workflow, self.node, self.shard, self.level, self.state, anew=True)


@value
class Change:
    """A new state for a node's job in RQ; `shard` and `level` name the job's queue."""

    workflow: str
    node: str
    shard: int
    level: Priority
    state: JobState
    result: bytes | None = None
    """The node's result as JSON, shown for a finished job unless it is over `MOST_RESULT_BYTES`."""
    error: str = ""
    """The error text that RQ's tools show for a failed job."""
    entry: str = ""
    """The id `<ms>-<n>` of the result's entry in the job's stream, added once; empty for the present time.

    A job that was created as ended has no entry yet: with an id it is added.
    """
    due_ms: int | None = None
    """The due time that RQ's tools show for a scheduled job; RQ does not enqueue the job then."""
    anew: bool = False
    """Whether to write the state again when the job's hash has it, to repair the job's queue and registries."""


class Proposal(NamedTuple):
    """A node whose job was moved from queued to started in RQ, proposed to the ledger to run.

    A job that the ledger does not claim stays started until a change sets its state.
    """

    workflow: str
    node: str
    capability: str
    """The node's capability, as the job's description in RQ names it; the job used capacity of that capability."""


class Key(NamedTuple):
    """The key of a node's job: the workflow's id and the node's name."""

    workflow: str
    node: str


class RequestKind(StrEnum):
    """The kind of a change that a person or a stock RQ worker made to a node's job."""

    CANCEL = "cancel"
    REQUEUE = "requeue"
    STRAY = "stray"
    """The kind of a job that a stock RQ worker took by mistake and failed; no task was executed."""


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A cancel, requeue or mistaken run of a node's job by RQ's tools, reported until a `Change` sets its state."""

    workflow: str
    node: str
    kind: RequestKind


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The workflows with unended jobs, and the queued jobs, that RQ has of one shard."""

    workflows: Collection[str]
    """The ids of workflows with unended jobs, except jobs that `requests` reports."""
    queued: Collection[Key]
    """The keys of jobs in the shard's queues; a job that moved during the pass may be missing."""


class TaskGraph(Protocol):
    """The jobs in RQ that show the nodes of workflows; an async context manager that opens even without a server.

    Each round trip ends within 1 s; no call blocks the event loop.

    Raises:
        TaskGraphUnavailable: when Redis does not answer; retryable, and the call may have been carried out.
    """

    async def create(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Create the jobs that RQ lacks, in the given order; return those that RQ has already, which stay unchanged.

        The caller gives predecessors first. A deferred job whose predecessors are all finished is queued at once.
        """

    async def tell(self, changes: Sequence[Change]) -> None:
        """Set the given states of jobs in RQ, in order, then queue deferred jobs whose predecessors are all finished.

        A job that a change of the same call names is queued only by that change. A job that RQ does not have is passed
        over: it was lost, and `difference` finds it.
        """

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        """Take up to `room` queued jobs of each capability out of RQ's queues, mark them as started, and return them.
        The urgent come first, at most `BATCH` at once, shared fairly among the shards. A job whose capability has no
        room stays where it is and holds up no other: so many `looks` at each level pass it, and jobs behind more than
        those are found by one of the next calls, each of which looks at another `PIECE` further behind. A failed job
        that a person requeued is taken, too, but not proposed: it is among the `requests`.
        """

    async def remove(self, workflow: str, nodes: Sequence[str]) -> None:
        """Remove the jobs of the given nodes of a workflow from RQ, with their results and executions."""

    async def requests(self, shards: Collection[int]) -> list[ToolRequest]:
        """Return at most 500 changes that people or stock workers made to jobs since `tell` set their states."""

    async def difference(self, expected: Sequence[Job], queued: Collection[Key] = ()) -> Sequence[Job]:
        """Compare the jobs that the ledger expects with RQ; return, in order, those that RQ lacks or has otherwise.

        `queued` are those that were just seen in their queues. Only so many of the other jobs are looked for in queues,
        and of the predecessors of each job, as cost Redis a few milliseconds: the rest is not compared.
        """

    async def unfinished(self, shard: int) -> Unfinished:
        """Return the workflows with unended jobs, and the queued jobs, of a shard in RQ, by one pass in small steps."""

    async def remember(self, shard: int) -> None:
        """Note in Redis that this dispatcher shows the shard's live nodes in RQ; a wipe of Redis removes the note."""

    async def incarnation(self, store: str, begun: int = 0) -> int:
        """Raise a store's incarnation number in Redis to `begun` if it is lower; return the number before, 0 for none.
        See `dispatcher.ledger.ownership.incarnation`. The number in Redis never falls, except by a wipe.
        """

    async def known(self, shards: Collection[int]) -> Collection[int]:
        """Return those of the given shards for which Redis still has the note that this dispatcher made by `remember`.

        For the other shards Redis was wiped, or another dispatcher had the shard.
        """
