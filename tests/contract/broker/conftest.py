from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiormq
import pytest

from coditect.broker.amqp import AmqpBroker
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import Topology
from tests.contract.broker.scene import FaultyBroker, Scene, new_prefix


class _RecordingBroker(AmqpBroker):
    """Remembers what it declared, so that the test can remove it."""

    def __init__(self, url: str, *, name: str, declared: list[Topology]) -> None:
        super().__init__(url, name=name)
        self._declared = declared

    async def declare(self, topology: Topology) -> None:
        self._declared.append(topology)
        await super().declare(topology)


async def _remove(url: str, declared: list[Topology]) -> None:
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    for topology in declared:
        for queue in topology.queues:
            await channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            await channel.exchange_delete(exchange.name)
    await connection.close()


@pytest.fixture(params=["memory", pytest.param("amqp", marks=pytest.mark.servers)])
def broker_url(request: pytest.FixtureRequest) -> str:
    """RabbitMQ's address, empty for the in-memory twin; not a coroutine, since it may start the server."""
    return str(request.getfixturevalue("amqp_url")) if request.param == "amqp" else ""


@pytest.fixture
async def scene(broker_url: str) -> AsyncIterator[Scene]:
    """The contract's stage, once on the in-memory twin and once on RabbitMQ."""
    prefix = new_prefix()
    server = MemoryServer()
    declared: list[Topology] = []
    async with AsyncExitStack() as stack:
        if broker_url:
            stack.push_async_callback(_remove, broker_url, declared)

        async def connect() -> FaultyBroker:
            if broker_url:
                return await stack.enter_async_context(_RecordingBroker(broker_url, name=prefix, declared=declared))
            return await stack.enter_async_context(MemoryBroker(server, name=prefix))

        yield Scene(prefix, connect)


@pytest.fixture
async def broker(scene: Scene) -> FaultyBroker:
    return await scene.connect()
