"""A whole control plane with a real RQ: everything else is in memory, and the agent does what the test permits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from chaos.capacity import BacklogCapacity
from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.model.capability import Priority
from coditect.model.retry import Retry
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.workflow.builder import Workflow
from dispatcher.capacity import Capacity
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.scheduling.reconciler import ROUND_SECONDS
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.store.memory import MemoryDatabase
from dispatcher.taskgraph.port import JobState, Proposal, job_state
from dispatcher.taskgraph.records import job_id, queue_name
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.integration.graph.stock import counts, info
from tests.support import eventually

SHARDS = 2
QUEUES = [queue_name(level, shard) for shard in range(SHARDS) for level in Priority]
CAPABILITY = "graph.work"


class Claims(Enum):
    """Which ways a dispatcher has to claim ready nodes: all three, RQ's proposals alone, or none."""

    ANY = "any"
    BY_RQ = "by RQ"
    NONE = "none"


class Unasked(RedisTaskGraph):
    """Proposes nothing of what RQ's queues hold."""

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        return []


@dataclass
class Plane:
    """Broker, registry, ledger and agent; dispatchers come and go."""

    redis_url: str
    client: Client
    server: MemoryServer
    registry: MemoryRegistry
    database: MemoryDatabase
    permits: asyncio.Semaphore
    executed: list[str] = field(default_factory=list)
    """Nodes in the order of their executions."""
    failing: set[str] = field(default_factory=set)
    """Nodes whose handlers fail."""

    @asynccontextmanager
    async def dispatcher(
        self,
        claims: Claims = Claims.ANY,
        *,
        reconcile_seconds: float = ROUND_SECONDS,
        graph_of: type[RedisTaskGraph] = RedisTaskGraph,
    ) -> AsyncIterator[None]:
        """A dispatcher for as long as the block lasts."""
        kind = Capacity if claims is Claims.ANY else BacklogCapacity
        counted = kind(asyncio.get_running_loop().time)
        options = DispatcherOptions(shards=SHARDS, capacity=counted, reconcile_seconds=reconcile_seconds)
        if claims is Claims.NONE:
            graph_of = Unasked
        async with AsyncExitStack() as stack:
            if claims is not Claims.ANY:
                patched = stack.enter_context(pytest.MonkeyPatch.context())
                patched.setattr(Scheduler, "_fill", lambda scheduler, capability: None)
            broker = await stack.enter_async_context(MemoryBroker(self.server, name=options.owner))
            graph = graph_of(self.redis_url, worker=options.owner, timeout_seconds=10)
            await stack.enter_async_context(graph)
            await stack.enter_async_context(
                running_dispatcher(
                    broker=broker,
                    registry=self.registry,
                    clock=SystemClock(),
                    database=self.database,
                    graph=graph,
                    options=options,
                )
            )
            yield

    def permit(self, executions: int) -> None:
        """So many more handlers may return."""
        for _ in range(executions):
            self.permits.release()

    async def ledger(self, run: WorkflowRun) -> Counter[JobState]:
        """What the ledger counts, by the states of the jobs."""
        counts: Counter[JobState] = Counter()
        for state, number in (await run.overview()).counts.items():
            counts[job_state(state)] += number
        return counts


@asynccontextmanager
async def plane(redis_url: str) -> AsyncIterator[Plane]:
    """All of it but the dispatcher."""
    server, registry, permits = MemoryServer(), MemoryRegistry(), asyncio.Semaphore(0)
    agent = Agent("worker", slots=200)
    executed: list[str] = []
    failing: set[str] = set()

    @agent.capability(CAPABILITY, timeout="1m")
    async def work(task: Any) -> Any:
        await permits.acquire()
        executed.append(str(task))
        if task in failing:
            raise ValueError(f"{task} is to fail")
        return task

    async with AsyncExitStack() as stack:
        for_agent = await stack.enter_async_context(MemoryBroker(server, name="agent"))
        for_client = await stack.enter_async_context(MemoryBroker(server, name="client"))
        await stack.enter_async_context(registry)
        database = await stack.enter_async_context(MemoryDatabase())
        await stack.enter_async_context(
            running_agent(
                agent,
                broker=for_agent,
                registry=registry,
                settings=Settings(drain_seconds=0),
                clock=SystemClock(),
                drain=asyncio.Event(),
            )
        )
        client = await stack.enter_async_context(Client(for_client, registry))
        yield Plane(redis_url, client, server, registry, database, permits, executed, failing)


def layered(layers: int, width: int) -> Workflow:
    """Each node after three of the layer before."""
    flow = Workflow("layered")
    before: list[Any] = []
    for layer in range(layers):
        before = [
            flow.task(
                CAPABILITY,
                f"n{layer}_{at}",
                name=f"n{layer}_{at}",
                retry=Retry(max_attempts=1),
                after=[before[(at + step) % width] for step in range(3)] if before else [],
            )
            for at in range(width)
        ]
    return flow


COUNTED = {"queued": "queued", "executing": "started", "finished": "finished", "failed": "failed"}
"""The words of `rq info`, and RQ's states."""


class Rq:
    """What stock RQ says about all of our queues."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.queues = [Queue(name, connection=client, serializer=JSONSerializer) for name in QUEUES]

    def states(self) -> Counter[str]:
        """What rq-dashboard counts, without the zeros."""
        return sum((counts(queue) for queue in self.queues), Counter[str]())

    def counts(self) -> dict[str, int]:
        """What `rq info` counts, by RQ's classes: quickly."""
        states = self.states()
        return {word: states[state] for word, state in COUNTED.items()}

    def job(self, run: WorkflowRun, node: str) -> Job:
        return Job.fetch(job_id(run.id, node), connection=self.client, serializer=JSONSerializer)

    def status(self, run: WorkflowRun, node: str) -> str:
        """Empty when there is no such job."""
        there = Job.exists(job_id(run.id, node), connection=self.client)
        return str(self.job(run, node).get_status().value) if there else ""

    def release(self, run: WorkflowRun, parent: str, child: str) -> None:
        """Stock RQ queues the child of a job that has finished: a parent that is gone counts as finished."""
        job, dependent = self.job(run, parent), self.job(run, child)
        queue = Queue(job.origin, connection=self.client, serializer=JSONSerializer)
        self.client.sadd(job.dependents_key, dependent.id)  # as if ours had not looked yet
        queue.enqueue_dependents(job)
        assert self.status(run, child) == "queued"

    async def info(self) -> dict[str, int]:
        """By `rq info`, a process of its own."""
        rows = (await asyncio.to_thread(info, self.client, *QUEUES)).values()
        return {word: sum(row[word] for row in rows) for word in self.counts()}

    async def agrees(self, expected: Callable[[], Awaitable[dict[str, int]]]) -> None:
        """Returns when both say so."""

        async def stands() -> bool:
            return self.counts() == await expected() == await self.info()

        await eventually(stands)
