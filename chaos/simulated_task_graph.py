"""The in-memory twin of the task graph in RQ, for tests, which can also act as RQ's tools and lose data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Self

from coditect.model.capability import Priority
from dispatcher.taskgraph.port import (
    BATCH,
    PIECE,
    Change,
    Job,
    JobState,
    Key,
    Proposal,
    RequestKind,
    TaskGraphUnavailable,
    ToolRequest,
    Unfinished,
    looks,
)
from dispatcher.taskgraph.records import MOST_DEPENDENCIES, pages_of_changes, queue_name

_ENDS = (JobState.FINISHED, JobState.FAILED, JobState.CANCELED)


@dataclass(slots=True)
class _JobEntry:
    job: Job
    state: JobState
    recorded: JobState
    """The last state that the dispatcher set for the job."""
    after: tuple[Key, ...]
    results: dict[str, bytes] = field(default_factory=dict)


class MemoryTaskGraph:
    """A task graph whose jobs lie in memory and have the states that RQ would give them.

    For tests: `failing` refuses every call from the next one on, `wipe` loses everything, `lose` one job; `cancel`,
    `requeue` and `stray` do what stock RQ's tools and workers do.
    """

    def __init__(self) -> None:
        self.failing = False
        self._jobs: dict[Key, _JobEntry] = {}
        self._dependents = defaultdict[Key, dict[Key, None]](dict)
        self._queues = defaultdict[str, list[Key]](list)
        self._known: set[int] = set()
        self._incarnations: dict[str, int] = {}
        self._turn = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def create(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Create the jobs that do not exist yet; return those of the given jobs that existed, which stay unchanged."""
        self._check("create")
        there: list[Job] = []
        for job in jobs:
            key = Key(job.workflow, job.node)
            if key in self._jobs:
                there.append(job)
                continue
            after = job.after if len(job.after) <= MOST_DEPENDENCIES else ()
            entry = _JobEntry(job, job.state, job.state, tuple(Key(job.workflow, node) for node in after))
            self._jobs[key] = entry
            if job.state is JobState.QUEUED:
                self._queues[queue_name(job.level, job.shard)].append(key)
            if job.state is JobState.DEFERRED:
                self._depend(key, entry)
                if self._met(entry):
                    self._enqueue(key, entry)
        return there

    async def tell(self, changes: Sequence[Change]) -> None:
        """Set the given states of jobs, then queue the deferred jobs whose predecessors are thereby all finished."""
        self._check("tell")
        for page in pages_of_changes(changes):
            ids = [(Key(job.workflow, job.node), job) for job in page]
            there = [(key, job) for key, job in ids if key in self._jobs]
            for key, change in there:
                self._change(key, self._jobs[key], change)
            held = {key for key, change in there if change.state is JobState.DEFERRED}
            for key, change in there:
                if change.state is JobState.FINISHED:
                    self._release(key, held)

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        """Take up to `room` queued jobs of each capability from the queues; return them as proposals, urgent first."""
        self._check("adopt")
        left = {capability: number for capability, number in room.items() if number > 0}
        if not shards or not left:
            return []
        limit = min(BATCH, sum(left.values()))
        taken: list[Key] = []
        for level in Priority:
            names = [queue_name(level, shard) for shard in shards]
            first = self._turn % len(names)
            queues = [self._queues[name] for name in names[first:] + names[:first]]
            for key in self._looked_at(queues, taken, limit):
                if len(taken) < limit and self._fits(key, left):
                    taken.append(key)
            out = {*taken}
            for queue in queues if taken else ():
                queue[:] = [key for key in queue if key not in out]
        self._turn += 1
        return [Proposal(*key, self._jobs[key].job.capability) for key in taken if self._start(self._jobs[key])]

    def _looked_at(self, queues: list[list[Key]], taken: list[Key], limit: int) -> Iterator[Key]:
        """Yield queued jobs in the order in which `adopt` examines them: in rounds, the first jobs of each queue."""
        seen, heads = looks(limit), [iter([*queue]) for queue in queues]
        full = heads
        while full and len(taken) < limit and seen > 0:
            number, left = -(-(limit - len(taken)) // len(full)), []
            for head in full:
                keys = [*islice(head, min(number, limit - len(taken), seen))]
                seen -= len(keys)
                if keys:
                    left.append(head)
                yield from keys
            full = left
        if others := [*heads[0]]:
            first = self._turn // len(queues) * PIECE % len(others)
            yield from others[first : first + PIECE]

    def _fits(self, key: Key, left: dict[str, int]) -> bool:
        """Tell whether `adopt` takes a queued job: it was requeued after a failure, or its capability has room `left`.

        In the latter case the job uses up a part of the room.
        """
        entry = self._jobs[key]
        if entry.recorded is JobState.FAILED:
            return True
        fits = left.get(entry.job.capability, 0) > 0
        if fits:
            left[entry.job.capability] -= 1
        return fits

    async def remove(self, workflow: str, nodes: Sequence[str]) -> None:
        """Remove the jobs of the given nodes of a workflow."""
        self._check("remove")
        for node in nodes:
            key = Key(workflow, node)
            self._dependents.pop(key, None)
            if (entry := self._jobs.pop(key, None)) is not None:
                self._unqueue(key, entry)

    async def requests(self, shards: Collection[int]) -> list[ToolRequest]:
        """Return at most 500 changes of the shards' jobs: cancels and requeues by people, runs by stock workers."""
        self._check("requests")
        found = [
            ToolRequest(*key, kind)
            for key, entry in self._jobs.items()
            if entry.job.shard in shards and (kind := _asked(entry.state, entry.recorded)) is not None
        ]
        return found[:BATCH]

    async def difference(self, expected: Sequence[Job], queued: Collection[Key] = ()) -> Sequence[Job]:
        """Return the expected jobs that are missing, or have another state."""
        self._check("difference")
        found = [(job, self._jobs.get(Key(job.workflow, job.node))) for job in expected]
        return [job for job, entry in found if entry is None or not self._is_as(entry, job)]

    async def unfinished(self, shard: int) -> Unfinished:
        """Return the shard's workflows with unended jobs that no person changed, and the shard's queued jobs."""
        self._check("unfinished")
        entries = [entry for entry in self._jobs.values() if entry.job.shard == shard and entry.state not in _ENDS]
        queued = {Key(entry.job.workflow, entry.job.node) for entry in entries if entry.state is JobState.QUEUED}
        return Unfinished(
            {entry.job.workflow for entry in entries if _asked(entry.state, entry.recorded) is None}, queued
        )

    async def remember(self, shard: int) -> None:
        """Record, until the next wipe, that the jobs of all live nodes of a shard are here."""
        self._check("remember")
        self._known.add(shard)

    async def incarnation(self, store: str, begun: int = 0) -> int:
        """Raise a store's incarnation number to `begun` if it is lower; return the number before, 0 for none."""
        self._check("incarnation")
        before = self._incarnations.get(store, 0)
        self._incarnations[store] = max(before, begun)
        return before

    async def known(self, shards: Collection[int]) -> Collection[int]:
        """Return those of the given shards that `remember` recorded since the last wipe."""
        self._check("known")
        return self._known.intersection(shards)

    def state(self, workflow: str, node: str) -> JobState | None:
        """Return the state of a node's job, for tests; None for a missing job."""
        entry = self._jobs.get(Key(workflow, node))
        return None if entry is None else entry.state

    def result(self, workflow: str, node: str) -> list[bytes]:
        """Return the recorded results and errors of a node's job, oldest first, for tests."""
        return [*self._jobs[Key(workflow, node)].results.values()]

    def wipe(self) -> None:
        """Remove all data, as a Redis does that restarts empty."""
        self._jobs.clear()
        self._dependents.clear()
        self._queues.clear()
        self._known.clear()
        self._incarnations.clear()

    def lose(self, workflow: str, node: str) -> None:
        """Remove one node's job, as `DEL rq:job:<key>` does in Redis."""
        key = Key(workflow, node)
        self._unqueue(key, self._jobs.pop(key))

    def cancel(self, workflow: str, node: str) -> None:
        """Cancel a node's job as a person does with RQ's `Job.cancel`."""
        self._move(Key(workflow, node), JobState.CANCELED)

    def requeue(self, workflow: str, node: str) -> None:
        """Queue a node's failed job again, as a person does with `rq requeue`."""
        self._move(Key(workflow, node), JobState.QUEUED)

    def stray(self, workflow: str, node: str) -> None:
        """Fail a node's queued job, as a stock RQ worker does that takes the job by mistake."""
        self._move(Key(workflow, node), JobState.FAILED)

    def _check(self, step: str) -> None:
        if self.failing:
            raise TaskGraphUnavailable("RQ's Redis did not answer", step=step, reason="failing")

    def _move(self, key: Key, state: JobState) -> None:
        """Set the state of a job, and move it into or out of its queue."""
        entry = self._jobs[key]
        self._unqueue(key, entry)
        entry.state = state
        if state is JobState.QUEUED:
            self._queues[queue_name(entry.job.level, entry.job.shard)].append(key)

    def _change(self, key: Key, entry: _JobEntry, change: Change) -> None:
        if entry.state == entry.recorded == change.state and not change.anew:
            if change.entry:
                _note(entry, change)
            return
        self._move(key, change.state)
        entry.recorded = change.state
        if change.state is JobState.DEFERRED:
            self._depend(key, entry)
        _note(entry, change)

    def _unqueue(self, key: Key, entry: _JobEntry) -> None:
        if entry.state is JobState.QUEUED:
            queue = self._queues[queue_name(entry.job.level, entry.job.shard)]
            if key in queue:
                queue.remove(key)

    def _start(self, entry: _JobEntry) -> bool:
        """Set a job to started; return False for a failed job that a person requeued, since `requests` reports it."""
        if entry.recorded is JobState.QUEUED:
            entry.recorded = JobState.STARTED
        entry.state = JobState.STARTED
        return entry.recorded is not JobState.FAILED

    def _is_as(self, entry: _JobEntry, job: Job) -> bool:
        key = Key(job.workflow, job.node)
        waits = (key in self._dependents.get(parent, {}) for parent in entry.after)
        return entry.state == entry.recorded == job.state and (job.state is not JobState.DEFERRED or all(waits))

    def _depend(self, key: Key, entry: _JobEntry) -> None:
        for parent in entry.after:
            self._dependents[parent][key] = None

    def _release(self, parent: Key, held: set[Key]) -> None:
        dependents = self._dependents.get(parent, {})
        for key in [*dependents]:
            entry = self._jobs.get(key)
            if entry is None or key in held:
                continue
            if entry.state is not JobState.DEFERRED:
                del dependents[key]
            elif self._met(entry):
                del dependents[key]
                self._enqueue(key, entry)

    def _met(self, entry: _JobEntry) -> bool:
        parents = [self._jobs.get(parent) for parent in entry.after]
        return bool(parents) and all(parent is not None and parent.state is JobState.FINISHED for parent in parents)

    def _enqueue(self, key: Key, entry: _JobEntry) -> None:
        self._move(key, JobState.QUEUED)
        entry.recorded = JobState.QUEUED


def _note(entry: _JobEntry, change: Change) -> None:
    if change.anew and entry.results:
        return
    number = change.entry or str(len(entry.results))
    if change.state is JobState.FINISHED:
        entry.results.setdefault(number, change.result or b"null")
    elif change.state is JobState.FAILED:
        entry.results.setdefault(number, change.error.encode())


def _asked(state: JobState, recorded: JobState) -> RequestKind | None:
    if state is recorded:
        return None
    if state is JobState.CANCELED:
        return RequestKind.CANCEL
    if state is JobState.FAILED:
        return RequestKind.STRAY
    return RequestKind.REQUEUE if recorded in (JobState.FAILED, JobState.CANCELED) else None
