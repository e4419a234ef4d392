"""What the dispatcher asks of RQ. Two adapters: `redis` and `memory`.

Everything is idempotent: any call may be repeated after an error, and after a crash from an earlier point on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from coditect.model.capability import Priority
from coditect.model.value import value

BATCH = 500
"""Most jobs that one round trip creates, changes or adopts: a script blocks Redis while it runs."""

MOST_RESULT_BYTES = 1_024
"""A longer result is not shown: the ledger has it."""


PIECE = 64
"""Jobs that one look at what stands further behind goes over."""


def looks(room: int) -> int:
    """At how many jobs of one level a round trip looks that takes so many: it costs as much as it may bring."""
    return min(2 * BATCH, PIECE + 4 * room)


class JobState(StrEnum):
    """RQ's own word for where a job is."""

    DEFERRED = "deferred"
    """It waits for its predecessors; RQ enqueues it when all of them are finished."""
    SCHEDULED = "scheduled"
    """It waits for a time or a person, not for predecessors: only a change moves it."""
    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"


@value
class Job:
    """A node as RQ is to have it."""

    workflow: str
    """A UUID, or another text of letters, digits and hyphens."""
    node: str
    shard: int
    level: Priority
    capability: str
    """Shown as the job's description, behind the node; it has no space in it. Adoption goes by it."""
    after: tuple[str, ...]
    """Nodes of the same workflow that must all be finished. Empty where RQ cannot say the condition (any, k of n,
    `when`, an edge that allows failure): such a job is deferred until a change enqueues it."""
    state: JobState
    timeout_ms: int | None = None


@value
class Change:
    """A job's new state. `shard` and `level` are the job's own."""

    workflow: str
    node: str
    shard: int
    level: Priority
    state: JobState
    result: bytes | None = None
    """JSON; shown for a finished job unless it is over `MOST_RESULT_BYTES`."""
    error: str = ""
    """Shown for a failed job."""
    entry: str = ""
    """Id of the result's stream entry, `<ms>-<n>`, so that a repeat adds none; empty: of the moment. A job that was
    created as it ended has none yet: with an id it is added."""
    due_ms: int | None = None
    """When a scheduled job's time comes, for people; RQ does not move it."""
    anew: bool = False
    """Even if its hash says so already: a registry or queue may not. The outcomes that it has stay as they are."""


class Proposal(NamedTuple):
    """A job that RQ had in a queue and has now as started: it may run, if the ledger agrees.

    One that the ledger does not claim stays started until it is told its state.
    """

    workflow: str
    node: str
    capability: str
    """Whose room it was taken for, by the job's description."""


class Key(NamedTuple):
    """Which node's job it is."""

    workflow: str
    node: str


class RequestKind(StrEnum):
    """What somebody did to a job with RQ's own tools."""

    CANCEL = "cancel"
    REQUEUE = "requeue"
    STRAY = "stray"
    """A stock RQ worker took it and failed it; nobody asked for anything, and nothing was executed."""


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """What a person wants of a job; told again and again until a change gives the job its state."""

    workflow: str
    node: str
    kind: RequestKind


@dataclass(frozen=True, slots=True)
class JobCounts:
    """Jobs by queue and state, as `rq info` and rq-dashboard count them."""

    by_queue: Mapping[str, Mapping[JobState, int]]

    def of(self, state: JobState) -> int:
        """Jobs in this state, in all queues."""
        return sum(states[state] for states in self.by_queue.values())


@dataclass(frozen=True, slots=True)
class GraphDifference:
    """Where RQ is not as it should be: `create` the missing and `tell` the changes."""

    missing: tuple[Job, ...]
    changes: tuple[Change, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.changes)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What has not ended, as RQ has it."""

    workflows: Collection[str]
    """Those with such jobs; what is among the `requests` does not count."""
    queued: Collection[Key]
    """Jobs in queues; one that was moved meanwhile may be missing."""


class TaskGraph(Protocol):
    """RQ, as far as the dispatcher needs it; an async context manager (opening it needs no server).

    Each round trip ends within 1 s; no call blocks the event loop.

    Raises: TaskGraphUnavailable, retryable; what was sent may have been done.
    """

    async def create(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Makes the jobs that RQ does not have, predecessors first; one it has is left as it is, and returned.

        A deferred job whose predecessors are all finished is queued at once.
        """

    async def tell(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Sets the states, in order, then queues the deferred jobs whose last predecessor is now finished.

        A job that a change of the same call names is not queued but for that change. Returns the changes of
        jobs that RQ does not have: they were lost, and are to be created.
        """

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        """Takes queued jobs by their capabilities, up to `room` of each, and makes each started as it is taken.

        The urgent first, at most `BATCH` at once, shared fairly among the shards. A job whose capability has no room
        stays where it is and holds up nobody: so many `looks` at each level pass it, and what stands behind more than
        those is found by one of the calls that follow, each of which looks at another `PIECE` further behind. A failed
        job that a person requeued is taken, too, but not proposed: it is among the `requests`.
        """

    async def remove(self, workflow: str, nodes: Sequence[str]) -> None:
        """Forgets jobs with everything about them."""

    async def counts(self, shards: Collection[int]) -> JobCounts:
        """What stock tools count, at one instant."""

    async def requests(self, shards: Collection[int]) -> list[ToolRequest]:
        """What people did with stock tools since the jobs were last told their states; at most `BATCH`."""

    async def difference(self, expected: Sequence[Job], queued: Collection[Key] = ()) -> GraphDifference:
        """Compares these jobs, as the ledger has them, with RQ: hash, queue, registries and executions.

        `queued` are those that were seen in their queues just now. Of the others so many are looked for in queues, and
        of the predecessors of each job, as costs Redis a few milliseconds: it says nothing of the rest.
        """

    async def unfinished(self, shard: int) -> Unfinished:
        """What RQ has of the shard that has not ended: one pass over its queues and registries, in small steps."""

    async def remember(self, shard: int) -> None:
        """Notes in Redis that it holds what this dispatcher knows of the shard; after a reconciliation."""

    async def incarnation(self, store: str, begun: int = 0) -> int:
        """Raise what Redis remembers of a store's incarnation to the one `begun`; what it remembered before, 0 of none.

        See `dispatcher.ledger.incarnation`. What is remembered never falls but by a wipe.
        """

    async def known(self, shards: Collection[int]) -> Collection[int]:
        """Of which shards that note is still there. If not, Redis was wiped, or another dispatcher had the shard."""
