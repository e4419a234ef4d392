"""A whole control plane with a real RQ: everything else is in memory, and the agent does what the test permits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.model.capability import Priority
from coditect.model.retry import Retry
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.workflow.builder import Workflow
from dispatcher.ports import ClaimPaths
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.scheduling.reconciler import ROUND_SECONDS
from dispatcher.store.memory import MemoryDatabase
from dispatcher.taskgraph.keys import queue_name
from dispatcher.taskgraph.port import JobState, job_state
from dispatcher.taskgraph.redis import RedisTaskGraph

SHARDS = 2
QUEUES = [queue_name(level, shard) for shard in range(SHARDS) for level in Priority]
CAPABILITY = "graph.work"


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
        ways: ClaimPaths,
        *,
        reconcile_seconds: float = ROUND_SECONDS,
        graph_of: type[RedisTaskGraph] = RedisTaskGraph,
    ) -> AsyncIterator[None]:
        """A dispatcher for as long as the block lasts."""
        options = DispatcherOptions(shards=SHARDS, ways=ways, reconcile_seconds=reconcile_seconds)
        async with AsyncExitStack() as stack:
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

    async def ledger(self, run: Run) -> Counter[JobState]:
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
