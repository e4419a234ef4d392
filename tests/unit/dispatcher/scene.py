"""The stage of the dispatcher's tests: a broker and a registry in memory, and a publisher who wants answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import Queue, QueueType, Topology, base_topology, capability_queues
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.registry.memory import MemoryRegistry
from coditect.wire import routing
from coditect.wire.tasks import read_result
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.undeliverable.notices import Notices
from tests.support import eventually
from tests.unit.registry.samples import IDLE, make_registration

CAPABILITY = "code.review"
REPLIES = "answers"


@dataclass(slots=True)
class Scene:
    """Everything of one test; it ends with the test."""

    stack: AsyncExitStack
    publisher: MemoryBroker
    server: MemoryServer
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    answers: list[Message] = field(default_factory=list)

    async def dispatcher(self, broker: MemoryBroker | None = None) -> Notices:
        """Another dispatcher, at work when this returns."""
        own = await self.stack.enter_async_context(broker or MemoryBroker(self.server, name="dispatcher"))
        running = running_dispatcher(
            broker=own, registry=self.registry, clock=SystemClock(), options=DispatcherOptions(shards=1)
        )
        return (await self.stack.enter_async_context(running)).notices

    async def offer(self, capability: str = CAPABILITY) -> None:
        """An agent declared the capability and is gone again: the queues are there, nobody consumes."""
        await self.publisher.declare(base_topology() + capability_queues(capability))

    async def know(self) -> None:
        """An agent that offers `code.review` stands in the registry."""
        await self.registry.register(make_registration(), IDLE, lease_seconds=60)

    async def publish(self, key: str, *, exchange: str = routing.TASKS, **fields: Any) -> None:
        fields.setdefault("reply_to", REPLIES)
        message = Message(**{"body": b"{}", **fields})
        await self.publisher.publish(message, exchange=exchange, routing_key=key)

    async def answer(self) -> Outcome:
        """The one answer that came."""
        await eventually(lambda: self.answers)
        assert len(self.answers) == 1
        return read_result(self.answers[0])

    def ready(self, queue: str) -> int:
        """How many messages lie in a queue."""
        found = self.server.find(queue)
        return 0 if found is None else found.stats.messages

    def left(self, queue: str) -> int:
        """How many messages lie in a queue, or are taken from it and not settled."""
        found = self.server.find(queue)
        return 0 if found is None else found.stats.messages + found.in_hand


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    server = MemoryServer()
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(MemoryBroker(server, name="publisher"))
        await publisher.declare(Topology(queues=(Queue(REPLIES, QueueType.CLASSIC),)))
        scene = Scene(stack, publisher, server)

        def take(delivery: Any) -> None:
            scene.answers.append(delivery.message)
            delivery.ack()

        await publisher.consume(REPLIES, take, prefetch=100)
        yield scene
