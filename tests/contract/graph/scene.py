"""Nodes and changes of a test's own."""

from __future__ import annotations

from uuid import uuid4

from coditect.model.capability import Priority
from dispatcher.taskgraph.port import Change, Job, JobState, RequestKind, TaskGraph, ToolRequest

CAPABILITY = "code.review"


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

    async def counts(self) -> dict[str, int]:
        """By state, without the zeros."""
        counts = await self.graph.counts([self.shard])
        return {state.value: number for state in JobState if (number := counts.of(state))}

    async def requests(self) -> list[ToolRequest]:
        return await self.graph.requests([self.shard])

    def request(self, node: str, kind: RequestKind) -> ToolRequest:
        return ToolRequest(self.workflow, node, kind)
