"""The broker stands still (SIGSTOP) and goes on."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from tests.faults.load import Load
from tests.faults.node import Node
from tests.support import eventually

pytestmark = pytest.mark.servers
FROZEN_SECONDS = 10.0


@pytest.mark.endurance
async def test_broker_that_stood_still_for_ten_seconds_lost_and_doubled_nothing(node: Node, queue: str) -> None:
    async with AmqpBroker(node.url, name="patient") as broker:
        lost: list[bool] = []
        load = Load(broker, queue)
        await broker.consume(queue, load.take, prefetch=100, on_lost=lambda: lost.append(True))

        async with load.publishing(in_flight=100):
            await eventually(lambda: len(load.confirmed) > 500)
            async with node.frozen():
                await asyncio.sleep(FROZEN_SECONDS)  # the fault itself, not a wait for something
                before = len(load.confirmed)
            await eventually(lambda: len(load.confirmed) > before + 500)
        await eventually(lambda: not load.lost)

        assert (load.failed, load.doubled, lost) == ([], 0, [])
        await eventually(lambda: broker.connected)  # with the next look at its connections
