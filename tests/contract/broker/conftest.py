from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiormq
import pytest

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Binding, QueueType, Topology, base_topology
from tests.contract.broker.scene import EntityFaults, FaultyBroker, Scene, new_prefix


class _RecordingBroker(AmqpBroker):
    """Remembers what it declared, so that the test can remove it."""

    def __init__(self, url: str, *, name: str, declared: list[Topology]) -> None:
        super().__init__(url, name=name, watch_seconds=1.0)
        self._declared = declared

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        self._declared.append(topology)
        await super().declare(topology, lazily=lazily)


async def _remove(url: str, declared: list[Topology]) -> None:
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    for topology in declared:
        for queue in topology.queues:
            if queue not in base_topology().queues:  # those are everybody's, as are their exchanges
                await channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            if exchange not in base_topology().exchanges:
                await channel.exchange_delete(exchange.name)
    await connection.close()


def _faults(url: str, server: MemoryServer) -> EntityFaults:
    return _ByAmqp(url) if url else _ByHand(server)


class _ByHand:
    """Of the in-memory server."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    async def delete_exchange(self, name: str) -> None:
        self._server.exchanges.delete(name)

    async def unbind(self, binding: Binding) -> None:
        self._server.exchanges.unbind(binding)


class _ByAmqp:
    """Of RabbitMQ, by a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def delete_exchange(self, name: str) -> None:
        async with await aiormq.connect(self._url) as connection:
            await (await connection.channel()).exchange_delete(name)

    async def unbind(self, binding: Binding) -> None:
        async with await aiormq.connect(self._url) as connection:
            await (await connection.channel()).queue_unbind(binding.queue, binding.exchange, binding.key)


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.servers)])
def url(request: pytest.FixtureRequest) -> str:
    """RabbitMQ's address, or none for the in-memory twin; not a coroutine, since it may start the server."""
    return "" if request.param == "memory" else str(request.getfixturevalue("amqp_url"))


@pytest.fixture
async def scene(url: str) -> AsyncIterator[Scene]:
    """The contract's stage: once on the in-memory twin, and once on RabbitMQ."""
    prefix = new_prefix()
    server = MemoryServer()
    declared: list[Topology] = []
    async with AsyncExitStack() as stack:
        if url:
            stack.push_async_callback(_remove, url, declared)

        async def connect() -> FaultyBroker:
            if url:
                broker = _RecordingBroker(url, name=prefix, declared=declared)
                return await stack.enter_async_context(broker)
            return await stack.enter_async_context(MemoryBroker(server, name=prefix))

        yield Scene(prefix, connect, _faults(url, server))


@pytest.fixture
async def broker(scene: Scene) -> FaultyBroker:
    return await scene.connect()


@pytest.fixture
def kind() -> QueueType:
    """The kind of `queue`, unless the test is parametrized by it."""
    return QueueType.QUORUM


@pytest.fixture
async def queue(scene: Scene, broker: FaultyBroker, kind: QueueType) -> str:
    """The name of a queue that the broker has declared."""
    return await scene.declared_queue(broker, kind=kind)
