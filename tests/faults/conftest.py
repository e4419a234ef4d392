from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from chaos.faults.proxy import FaultProxy, fault_proxy
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Queue, QueueType, Topology
from tests.faults.node import Node
from tests.servers import Broker


@pytest.fixture(scope="session")
def node(breakable: Broker) -> Node:
    """The broker that these tests hurt; each of them leaves it whole."""
    return Node(breakable.servers, breakable.folder.parent)


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
