from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Queue, Topology


@dataclass
class Scene:
    """Queues of one test, and a connection that looks on."""

    url: str
    observer: AmqpBroker
    prefix: str = field(default_factory=lambda: f"broker-{uuid4().hex[:12]}")

    async def declare(self, short: str = "queue", *, max_length: int | None = None) -> str:
        queue = Queue(f"{self.prefix}.{short}", delivery_limit=1_000, max_length=max_length)
        await self.observer.declare(Topology(queues=(queue,)))
        self.names.append(queue.name)
        return queue.name

    names: list[str] = field(default_factory=list)

    async def ready(self, queue: str) -> int:
        stats = await self.observer.stats(queue)
        assert stats is not None
        return stats.messages


@pytest.fixture
async def scene(amqp_url: str) -> AsyncIterator[Scene]:
    async with AmqpBroker(amqp_url, name="observer") as observer:
        made = Scene(amqp_url, observer)
        yield made
        for name in made.names:
            await observer.delete_queue(name)


@pytest.fixture
async def broker(scene: Scene) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(scene.url, name="tested", watch_seconds=0.3) as connected:
        yield connected
