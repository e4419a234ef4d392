"""The stage of the agent tests: one broker and one registry in memory, agents and clients that come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.agent.runtime import Runtime
from coditect.aio.clock import Clock, SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.model.result import Failure
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.wire import routing
from tests.support import eventually

SETTINGS = Settings(drain_seconds=0.3)


@dataclass(frozen=True, slots=True)
class StillClock(SystemClock):
    """The machine's clock, stopped: a task is as old when it arrives as its test says, on a busy machine too."""

    _now_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def now_ms(self) -> int:
        return self._now_ms


@dataclass(slots=True)
class Running:
    """An agent at work, and what a test may do to it."""

    runtime: Runtime
    broker: MemoryBroker
    drain: asyncio.Event
    stack: AsyncExitStack

    @property
    def agent_id(self) -> str:
        return self.runtime.agent_id

    async def stop(self) -> None:
        """Drains it, as SIGTERM does."""
        await self.stack.aclose()

    async def vanish(self) -> None:
        """Its connection breaks and never comes back, as when the process is killed."""
        await self.broker.__aexit__(None, None, None)


class Faulty(MemoryBroker):
    """A broker whose publishes a test can make fail before anything was sent."""

    def __init__(self, server: MemoryServer, *, name: str = "faulty") -> None:
        super().__init__(server, name=name)
        self.failures: dict[str, list[Exception]] = {}
        """By exchange: what its next publishes raise."""

    async def publish(self, message: Message, *, exchange: str, routing_key: str, **more: Any) -> None:
        planned = self.failures.get(exchange)
        if planned:
            raise planned.pop(0)
        await super().publish(message, exchange=exchange, routing_key=routing_key, **more)


@dataclass(slots=True)
class Scene:
    """Everything of one test; it ends with the test."""

    stack: AsyncExitStack
    server: MemoryServer = field(default_factory=MemoryServer)
    clock: Clock = field(default_factory=StillClock)
    registry: MemoryRegistry = field(init=False)
    """It has the same clock: an agent corrects its own by the registry's."""

    own_client: Client | None = None

    def __post_init__(self) -> None:
        self.registry = MemoryRegistry(wall_ms=self.clock.now_ms)

    async def broker(self) -> MemoryBroker:
        """A connection of the test's own."""
        return await self.stack.enter_async_context(MemoryBroker(self.server, name="test"))

    async def client(self) -> Client:
        return await self.stack.enter_async_context(Client(await self.broker(), self.registry))

    async def submit(self, capability: str, value: Any = None, **options: Any) -> Handle:
        """A task of the scene's own client."""
        self.own_client = self.own_client or await self.client()
        return await self.own_client.submit(capability, value, **options)

    async def request(self, capability: str, value: Any = None, model: Any = Any, **options: Any) -> Any:
        """The answer to a request of the scene's own client."""
        self.own_client = self.own_client or await self.client()
        return await self.own_client.request(capability, value, model, **options)

    async def serve(self, agent: Agent, **settings: Any) -> Client:
        """Another process of this agent, and a client."""
        await self.start(agent, **settings)
        return await self.client()

    async def start(self, agent: Agent, *, broker: MemoryBroker | None = None, **settings: Any) -> Running:
        """Another process of this agent."""
        own = await self.stack.enter_async_context(AsyncExitStack())
        link = await own.enter_async_context(broker or MemoryBroker(self.server, name=agent.name))
        drain = asyncio.Event()
        runtime = await own.enter_async_context(
            running_agent(
                agent,
                broker=link,
                registry=self.registry,
                settings=replace(SETTINGS, **settings),
                clock=self.clock,
                drain=drain,
            )
        )
        return Running(runtime, link, drain, own)

    def ready(self, queue: str) -> int:
        """How many messages wait in a queue."""
        found = self.server.find(queue)
        return 0 if found is None else found.stats.messages

    def ready_tasks(self, capability: str) -> int:
        return sum(self.ready(routing.task_queue(capability, level)) for level in Priority)

    async def acked(self, capability: str) -> None:
        """Waits until no task of it lies in a queue or is in hand."""
        found = [self.server.find(routing.task_queue(capability, level)) for level in Priority]
        queues = [one for one in found if one is not None]
        await eventually(lambda: not any(one.in_hand or one.stats.messages for one in queues))

    def dead(self, capability: str) -> int:
        return self.ready(routing.dead_queue(capability))

    async def dead_letter(self, capability: str) -> Message:
        """The first dead letter of a capability."""
        delivery = await (await self.broker()).get(routing.dead_queue(capability))
        assert delivery is not None
        return delivery.message


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(stack)


async def replies(broker: MemoryBroker, queue: str) -> list[Delivery]:
    """Collects what arrives in a queue of the test's own."""
    arrived: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        arrived.append(delivery)
        delivery.ack()

    await broker.consume(queue, take, prefetch=100)
    return arrived


async def answers(broker: MemoryBroker, queue: str = "answers") -> list[Delivery]:
    """Declares a queue of the test's own, and collects what arrives in it."""
    await broker.declare(Topology(queues=(Queue(queue, QueueType.CLASSIC),)))
    return await replies(broker, queue)


async def failure_of(handle: Handle, timeout: str = "100s") -> Failure:
    """How a task failed."""
    failure = (await handle.outcome(timeout=timeout)).failure
    assert failure is not None
    return failure
