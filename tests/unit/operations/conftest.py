from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, capability_queues
from tests.unit.operations.scene import CAPABILITY, Scene


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(base_topology() + capability_queues(CAPABILITY))
        yield Scene(server, broker)
