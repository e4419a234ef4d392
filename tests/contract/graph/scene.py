"""Nodes and changes of a test's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import cycle
from uuid import uuid4

from chaos.simulated_task_graph import MemoryTaskGraph
from coditect.model.capability import Priority
from dispatcher.taskgraph.port import Change, Job, JobState, RequestKind, TaskGraph, ToolRequest
from dispatcher.taskgraph.records import queue_name
from dispatcher.taskgraph.redis import RedisTaskGraph

CAPABILITY = "code.review"
REGISTRIES = [state for state in JobState if state is not JobState.QUEUED]


async def counted(
    graph: TaskGraph, shards: Collection[int], *, levels: Collection[Priority] = tuple(Priority)
) -> Counter[JobState]:
    """What stock tools count in the shards' queues, without the zeros."""
    names = {queue_name(level, shard) for level in levels for shard in shards}
    if isinstance(graph, MemoryTaskGraph):
        return Counter(one.state for one in graph._jobs.values() if queue_name(one.job.level, one.job.shard) in names)
    assert isinstance(graph, RedisTaskGraph)
    async with graph._redis.pipeline(transaction=True) as pipeline:
        for name in names:
            pipeline.llen(f"rq:queue:{name}")
            for state in REGISTRIES:
                pipeline.zcard(f"rq:{'wip' if state is JobState.STARTED else state.value}:{name}")
        numbers = await pipeline.execute()
    found = Counter[JobState]()
    for place, number in zip(cycle((JobState.QUEUED, *REGISTRIES)), numbers, strict=False):
        found[place] += number
    return +found


class Scene:
    """One workflow in a shard of its own, with short ways to say things about it."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph = graph
        self.workflow = str(uuid4())
        self.shard = uuid4().int % 1_000_000_000

    def job(
        self,
        node: str,
        *after: str,
        state: JobState | None = None,
        level: Priority = Priority.P1,
        shard: int = 0,
        capability: str = CAPABILITY,
    ) -> Job:
        """Queued when it comes after nothing, else deferred, unless the state is given."""
        given = state or (JobState.DEFERRED if after else JobState.QUEUED)
        return Job(self.workflow, node, self.shard + shard, level, capability, after, given)

    def change(self, node: str, state: JobState, level: Priority = Priority.P1) -> Change:
        return Change(self.workflow, node, self.shard, level, state)

    async def create(self, *jobs: Job) -> None:
        await self.graph.create(jobs)

    async def tell(self, state: JobState, *nodes: str) -> None:
        await self.graph.tell([self.change(node, state) for node in nodes])

    async def adopt(self, most: int = 100, **others: int) -> list[str]:
        """At most so many of the usual capability, and of others."""
        return [one.node for one in await self.graph.adopt([self.shard], {CAPABILITY: most, **others})]

    async def mend(self, *expected: Job) -> list[Job]:
        """RQ gets what it lacks or has otherwise, as the ledger has it; which jobs these are."""
        wrong = [*await self.graph.difference(expected)]
        there = await self.graph.create(wrong)
        await self.graph.tell([job.as_change() for job in there])
        return wrong

    async def counts(self) -> dict[str, int]:
        """By state, without the zeros."""
        counts = await counted(self.graph, [self.shard])
        return {state.value: counts[state] for state in JobState if counts[state]}

    async def requests(self) -> list[ToolRequest]:
        return await self.graph.requests([self.shard])

    def request(self, node: str, kind: RequestKind) -> ToolRequest:
        return ToolRequest(self.workflow, node, kind)
