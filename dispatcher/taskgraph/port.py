"""The port of the task graph in RQ, with two adapters: `redis` and `memory`.

Every call is idempotent: it may be repeated after an error, and after a crash from an earlier point on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from coditect.errors import Retryable
from coditect.model.capability import Priority
from coditect.model.value import value
from coditect.workflow.states import TaskState

BATCH = 500
"""The most jobs that one call to Redis creates, changes or adopts, because a script blocks Redis."""

MOST_RESULT_BYTES = 1_024
"""The largest result in bytes that RQ's tools show; larger results are only in the ledger."""

PIECE = 64
"""The number of queued jobs that one look passes beyond the head of a queue."""


class TaskGraphUnavailable(Retryable):
    """The error of a call that RQ's Redis did not answer in time, or refused; the call may be repeated."""


def looks(room: int) -> int:
    """Return how many queued jobs of one level a round trip examines: more when there is `room` for more."""
    return min(2 * BATCH, PIECE + 4 * room)


class JobState(StrEnum):
    """The state of a job, in RQ's own words."""

    DEFERRED = "deferred"
    """Waiting for predecessors; RQ enqueues the job when all of them are finished."""
    SCHEDULED = "scheduled"
    """Waiting for a time or a person, not for predecessors; only a change by the dispatcher moves the job."""
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
    TaskState.COMPLETED: JobState.FINISHED,
    TaskState.FAILED: JobState.FAILED,
    TaskState.CANCELED: JobState.CANCELED,
    TaskState.REJECTED: JobState.FAILED,
    TaskState.SKIPPED: JobState.CANCELED,
    TaskState.DEAD: JobState.FAILED,
}


def job_state(state: TaskState) -> JobState:
    """Return the RQ state that a node's job has when the node is in the given state."""
    return _PLACES[state]


@value
class Job:
    """A workflow's node in the form of a job that RQ is to have."""

    workflow: str
    """The workflow's id: a UUID, or another text of letters, digits and hyphens."""
    node: str
    shard: int
    level: Priority
    capability: str
    """The capability's name, without a space; the job's description ends with it."""
    after: tuple[str, ...]
    """The names of the nodes of the same workflow that must all be finished before the job is queued.

    Empty where RQ cannot express the condition (any, k of n, `when`, an edge that allows failure): such a job is
    deferred until a change enqueues it.
    """
    state: JobState
    timeout_ms: int | None = None


@value
class Change:
    """A new state for a job that RQ has; `shard` and `level` are the job's own."""

    workflow: str
    node: str
    shard: int
    level: Priority
    state: JobState
    result: bytes | None = None
    """The node's result as JSON, shown for a finished job unless it is over `MOST_RESULT_BYTES`."""
    error: str = ""
    """The text of the error that RQ's tools show for a failed job."""
    entry: str = ""
    """The id of the result's entry in the job's stream, so that a repeat adds none; empty for the current time.

    A job that was created as ended has no entry yet: with an id it is added.
    """
    due_ms: int | None = None
    """The due time of a scheduled job in milliseconds, for people to see; RQ does not act on it."""
    anew: bool = False
    """Whether to write the state even when the job's hash has it, because its queue or registry may differ."""


class Proposal(NamedTuple):
    """A job that RQ had queued and has marked as started: its node may run, if the ledger permits it.

    A job that the ledger does not claim stays started until a change sets its state.
    """

    workflow: str
    node: str
    capability: str
    """The capability against whose room the job was taken, by the job's description."""


class Key(NamedTuple):
    """The key of a node's job: workflow and node."""

    workflow: str
    node: str


class RequestKind(StrEnum):
    """The kind of change that a person made to a job with RQ's own tools."""

    CANCEL = "cancel"
    REQUEUE = "requeue"
    STRAY = "stray"
    """A stock RQ worker took the job and failed it: no person asked for anything, and no task was executed."""


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A change that a person made to a job with RQ's tools, reported until the dispatcher sets the job's state."""

    workflow: str
    node: str
    kind: RequestKind


@dataclass(frozen=True, slots=True)
class GraphDifference:
    """The differences of RQ from the ledger: the jobs to `create`, and the changes to `tell`."""

    missing: tuple[Job, ...]
    changes: tuple[Change, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.changes)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The workflows with unended jobs in RQ, and the queued jobs, of one shard."""

    workflows: Collection[str]
    """The workflows that have jobs in RQ which have not ended, without jobs that people changed."""
    queued: Collection[Key]
    """The jobs in RQ's queues; a job that moves during the look may be missing."""


class TaskGraph(Protocol):
    """The interface to the task graph in RQ, an async context manager whose opening needs no server.

    Each round trip ends within 1 s; no call blocks the event loop.

    Raises:
        TaskGraphUnavailable: when Redis does not answer; retryable, and the call may have been carried out.
    """

    async def create(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Create the jobs that RQ does not have, predecessors first, and return those that it has, unchanged.

        A deferred job whose predecessors are all finished is queued at once.
        """

    async def tell(self, changes: Sequence[Change]) -> None:
        """Set the given states of jobs, in order, then queue the deferred jobs whose last predecessor is finished.

        A job that a change of the same call names is queued only by that change. A job that RQ does not have is passed
        over: it was lost, and `difference` finds it.
        """

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        """Take up to `room` queued jobs of each capability, and mark each as started when it is taken.

        The urgent come first, at most `BATCH` at once, shared fairly among the shards. A job whose capability has no
        room stays where it is and holds up no other: so many `looks` at each level pass it, and jobs behind more than
        those are found by one of the next calls, each of which looks at another `PIECE` further behind. A failed job
        that a person requeued is taken, too, but not proposed: it is among the `requests`.
        """

    async def remove(self, workflow: str, nodes: Sequence[str]) -> None:
        """Remove a workflow's jobs with everything that RQ keeps about them."""

    async def requests(self, shards: Collection[int]) -> list[ToolRequest]:
        """Return at most `BATCH` requests that people made with stock tools since the jobs' states were last set."""

    async def difference(self, expected: Sequence[Job], queued: Collection[Key] = ()) -> GraphDifference:
        """Compare the given jobs, as the ledger has them, with RQ, and return the differences.

        `queued` are those that were just seen in their queues. Only so many of the other jobs are looked for in queues,
        and of the predecessors of each job, as cost Redis a few milliseconds: the rest is not compared.
        """

    async def unfinished(self, shard: int) -> Unfinished:
        """Return the shard's workflows and queued jobs that have not ended in RQ, by one pass in small steps."""

    async def remember(self, shard: int) -> None:
        """Record in Redis, after a reconciliation, that RQ has this dispatcher's state of the shard."""

    async def incarnation(self, store: str, begun: int = 0) -> int:
        """Raise the store's incarnation in Redis to `begun`, and return the one before, 0 for none.

        See `dispatcher.ledger.ownership.incarnation`. The number in Redis never falls, except by a wipe.
        """

    async def known(self, shards: Collection[int]) -> Collection[int]:
        """Return which of the given shards `remember` has recorded and Redis has not lost since.

        For the others Redis was wiped, or another dispatcher had the shard.
        """
