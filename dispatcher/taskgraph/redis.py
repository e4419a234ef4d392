"""The Redis adapter of the task graph: Lua scripts (`lua/`) on the keys that stock RQ reads.

Each script is one atomic step and one round trip over at most `port.BATCH` jobs. RQ's keys have no hash tags, so RQ and
these scripts need a Redis that is no cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from coditect.aio.clock import SystemClock
from coditect.model.capability import Priority
from coditect.registry.redis import RedisConnection, read_scripts
from coditect.wire import json
from dispatcher.taskgraph.function import FUNCTION
from dispatcher.taskgraph.port import (
    BATCH,
    PIECE,
    Change,
    Job,
    Key,
    Proposal,
    RequestKind,
    TaskGraphUnavailable,
    ToolRequest,
    Unfinished,
    looks,
)
from dispatcher.taskgraph.records import (
    batches,
    change_row,
    identity,
    job_id,
    job_row,
    pages_of_changes,
    queue_name,
    refusal_row,
    stamp,
    template,
)

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.9
LOOKED_AT = 200
"""The number of jobs of each RQ queue and registry that one round trip of `unfinished` examines."""
MOST_DEPENDENTS = 1_000
"""The most dependents of a finished job that one round trip examines for release."""
_PACKAGE = "dispatcher.taskgraph"
_SCRIPTS = {
    **read_scripts(_PACKAGE, "create", "tell", "release", "adopt", "remove", shared="moves"),
    **read_scripts(_PACKAGE, "requests", "difference", "unfinished"),
}
_FOREIGN = f"Only jobs of the function {FUNCTION} are taken from this queue; enqueue others elsewhere"

Item = TypeVar("Item")


class RedisTaskGraph:
    """The task graph in a Redis database that RQ uses; safe for concurrent calls on one event loop.

    `worker` names this life of this dispatcher: stock tools show it as the worker of the jobs that it started.
    """

    def __init__(self, url: str, *, worker: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Prepare the connection and the Lua scripts, without connecting yet.

        Raises:
            SetupError: when Redis knows no such URL.
        """
        self._worker = worker
        self._clock = SystemClock()
        self._connection = RedisConnection(url, timeout_seconds=timeout_seconds, unavailable=_unavailable)
        self._redis = self._connection.redis
        self._template = json.dumps(template())
        self._turn = 0
        self._scripts = {step: self._redis.register_script(text) for step, text in _SCRIPTS.items()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def create(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Create the jobs that RQ lacks, one Lua script for each batch; return the given jobs that RQ has already."""
        there: list[Job] = []
        for batch in batches(jobs):
            rows = json.dumps([job_row(job) for job in batch])
            there += [batch[number] for number in await self._run("create", self._stamp(), self._template, rows)]
        return there

    async def tell(self, changes: Sequence[Change]) -> None:
        """Set states of jobs in RQ, up to 500 in a round trip, and queue jobs whose predecessors are then finished."""
        for batch in pages_of_changes(changes):
            await self._tell_rows([change_row(change) for change in batch])

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        """Take up to `room` queued jobs of each capability from RQ, mark them as started, return them, urgent first.

        A job that belongs to no node is failed: another program enqueued it.
        """
        room = {capability: number for capability, number in room.items() if number > 0}
        if not shards or not room:
            return []
        limit = min(BATCH, sum(room.values()))
        levels = [self._queues(shards, level) for level in Priority]
        piece = self._turn // len(shards)
        self._turn += 1
        arguments = (json.dumps(levels), json.dumps(room), limit, looks(limit), piece, PIECE)
        ours, others = await self._run("adopt", self._stamp(), *arguments)
        strange = [(job, queue) for job, queue, was_told in _triples(others) if not was_told or _identity(job) is None]
        proposals: list[Proposal] = []
        for job, queue, capability in _triples(ours):
            if key := _identity(job):
                proposals.append(Proposal(*key, capability.decode(errors="replace")))
            else:
                strange.append((job, queue))
        await self._refuse(strange)
        return proposals

    async def remove(self, workflow: str, nodes: Sequence[str]) -> None:
        """Remove the jobs of the given nodes of a workflow from RQ, up to 500 (`BATCH`) in a round trip."""
        for page in _pages(nodes):
            ids = json.dumps([job_id(workflow, node) for node in page])
            await self._run("remove", self._stamp(), ids)

    async def requests(self, shards: Collection[int]) -> list[ToolRequest]:
        """Return at most 500 changes that people or stock workers made to the shards' jobs, in one round trip."""
        queues = [queue_name(level, shard) for shard in shards for level in Priority]
        found = await self._run("requests", json.dumps(queues), BATCH)
        kinds = zip(found[::2], found[1::2], strict=True)
        asked = [(RequestKind(kind.decode()), _identity(job)) for kind, job in kinds]
        return [ToolRequest(*job, kind) for kind, job in asked if job is not None]

    async def difference(self, expected: Sequence[Job], queued: Collection[Key] = ()) -> Sequence[Job]:
        """Compare the expected jobs with RQ, 500 in a round trip; return those that are missing or differ."""
        wrong: list[Job] = []
        for page in _pages(expected):
            rows = [
                [
                    job_id(job.workflow, job.node),
                    queue_name(job.level, job.shard),
                    job.state,
                    int(Key(job.workflow, job.node) in queued),
                ]
                for job in page
            ]
            wrong += [page[number] for number in await self._run("difference", json.dumps(rows))]
        return wrong

    async def unfinished(self, shard: int) -> Unfinished:
        """Return the shard's workflows with unended jobs and its queued jobs, reading 200 jobs of a queue at once."""
        queues, first = [queue_name(level, shard) for level in Priority], 0
        workflows: set[str] = set()
        queued: set[Key] = set()
        while queues:
            arguments = (json.dumps(queues), first, LOOKED_AT)
            full, found, waiting = await self._run("unfinished", *arguments)
            workflows |= {workflow.decode(errors="replace") for workflow in found}
            queued |= {key for job in waiting if (key := _identity(job))}
            queues, first = [queues[number] for number in full], first + LOOKED_AT
        return Unfinished(workflows, queued)

    async def remember(self, shard: int) -> None:
        """Write this dispatcher's name into the shard's key in Redis, to note that RQ has all nodes of the shard."""
        await self._connection.bounded("remember", self._redis.set(_epoch_key(shard), self._worker))

    async def incarnation(self, store: str, begun: int = 0) -> int:
        """Raise a store's incarnation number in Redis to `begun` if it is lower, and return the number before."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zscore(_STORES_KEY, store)
            pipeline.zadd(_STORES_KEY, {store: begun}, gt=True)
            before, _ = await self._connection.bounded("incarnation", pipeline.execute())
        return int(before or 0)

    async def known(self, shards: Collection[int]) -> Collection[int]:
        """Return the given shards whose key in Redis holds this dispatcher's name: RQ has all nodes of these."""
        if not shards:
            return ()
        found = await self._connection.bounded("known", self._redis.mget(map(_epoch_key, shards)))
        return [shard for shard, epoch in zip(shards, found, strict=True) if epoch == self._worker.encode()]

    def _queues(self, shards: Collection[int], level: Priority) -> list[str]:
        """Return the names of the shards' RQ queues of one priority; each `adopt` begins with another shard's queue."""
        queues = [queue_name(level, shard) for shard in shards]
        first = self._turn % len(queues)
        return queues[first:] + queues[:first]

    async def _tell_rows(self, rows: list[list[Any]]) -> None:
        refused, left = await self._run("tell", self._stamp(), json.dumps(rows), MOST_DEPENDENTS)
        for job in refused:
            log.error("A key of RQ's job is not what RQ writes; the job keeps its state", extra={"job": job.decode()})
        for job in left:
            cursor = b"0"
            while True:
                cursor = await self._run("release", self._stamp(), job, cursor, BATCH)
                if cursor == b"0":
                    break

    async def _refuse(self, jobs: list[tuple[bytes, bytes]]) -> None:
        """Fail RQ jobs that belong to no node, which another program enqueued into a dispatcher's queue."""
        if not jobs:
            return
        names = [(job.decode(errors="replace"), queue.decode()) for job, queue in jobs]
        log.warning("A queue of ours had jobs of others; they were failed", extra={"jobs": [job for job, _ in names]})
        await self._tell_rows([refusal_row(job, queue, _FOREIGN) for job, queue in names])

    async def _run(self, step: str, *arguments: str | bytes | int) -> Any:
        return await self._connection.bounded(step, self._scripts[step](args=arguments))

    def _stamp(self) -> bytes:
        nonce = self._clock.new_id().replace("-", "")[:24]
        return json.dumps(stamp(self._clock.now_ms(), self._worker, nonce))


def _identity(job: bytes) -> Key | None:
    return identity(job.decode(errors="replace"))


def _triples(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    return zip(flat[::3], flat[1::3], flat[2::3], strict=True)


def _pages(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[at : at + BATCH] for at in range(0, len(items), BATCH))


_STORES_KEY = "coditect:stores"


def _epoch_key(shard: int) -> str:
    return f"coditect:epoch:{shard}"


def _unavailable(step: str, reason: str) -> TaskGraphUnavailable:
    return TaskGraphUnavailable("RQ's Redis did not answer", step=step, reason=reason)
