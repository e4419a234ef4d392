from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Queue, QueueType, Topology
from dispatcher.chaos.faults.proxy import FaultProxy, fault_proxy
from tests.faults.node import Node, private_node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The broker that these tests hurt; each of them leaves it whole."""
    with private_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
async def proxy(node: Node) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(node.url) as running:
        yield running


@pytest.fixture
async def observer(node: Node) -> AsyncIterator[AmqpBroker]:
    """A broker connection that no fault touches."""
    async with AmqpBroker(node.url, name="observer") as connected:
        yield connected


@pytest.fixture
async def queue(node: Node, observer: AmqpBroker) -> AsyncIterator[str]:
    """A durable quorum queue of this test."""
    async with declared(observer) as name:
        yield name
        await node.start()  # a test that failed may have left it dead


@asynccontextmanager
async def declared(broker: AmqpBroker, kind: QueueType = QueueType.QUORUM) -> AsyncIterator[str]:
    name = f"fault-{uuid4().hex[:12]}"
    limit = 1_000 if kind is QueueType.QUORUM else None
    await broker.declare(Topology(queues=(Queue(name, kind, delivery_limit=limit),)))
    yield name
    await broker.delete_queue(name)
