"""How much is said to the broker before anything is published: a fleet of clients opens and returns at once."""

from __future__ import annotations

import pytest

from chaos.faults.proxy import FaultProxy
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology
from coditect.client.client import Client
from tests.support import eventually

pytestmark = pytest.mark.servers
OPENED_WITH, BACK_WITH = 9, 16


def calls(proxy: FaultProxy) -> int:
    return sum(len(pipe.calls) for pipe in proxy.pipes())


async def test_client_opens_and_returns_with_a_few_calls(proxy: FaultProxy, observer: AmqpBroker) -> None:
    await observer.declare(base_topology())
    async with AmqpBroker(proxy.url, watch_seconds=60) as broker, Client(broker):
        opened, pipes = calls(proxy), proxy.pipes()

        broker.drop()
        await eventually(lambda: broker.connected and proxy.pipes() and not set(pipes) & set(proxy.pipes()))

        assert 0 < opened <= OPENED_WITH
        assert 0 < calls(proxy) <= BACK_WITH
