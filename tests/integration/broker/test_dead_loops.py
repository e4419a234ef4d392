"""A loop of a connection to RabbitMQ that dies is started again: what was held comes back, and publishing goes on."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.model.message import Message
from tests.integration.broker.conftest import Scene
from tests.loops import loops, strike_for_ever, strike_once
from tests.support import eventually

pytestmark = pytest.mark.servers

CONNECTIONS = {"incoming connection", "outgoing connection"}


async def test_every_loop_of_a_connection_that_dies_is_healed(scene: Scene, broker: AmqpBroker) -> None:
    queue, got = await scene.declare(), list[Delivery]()
    await broker.consume(queue, got.append, prefetch=10, group="g")
    names = loops(broker.health, critical=True)
    assert names - {"settle"} == CONNECTIONS | {"watch consumers", "watch publishes", "watch g"}

    for number, name in enumerate(sorted(names - {"settle"})):
        got.clear()
        await strike_once(broker.health, name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await eventually(lambda name=name: broker.health.deaths[name] == 1)  # type: ignore[misc]
        assert broker.health.why_not() != ""

        await eventually(lambda: broker.connected and not broker.health.why_not())
        await broker.publish(Message(b"", message_id=str(number)), exchange="", routing_key=queue)
        await eventually(lambda number=number: str(number) in [one.message.message_id for one in got])  # type: ignore[misc]
        for delivery in got:
            delivery.ack()


@pytest.mark.parametrize("name", sorted(CONNECTIONS))
async def test_publishes_wait_for_a_connection_loop_started_again(scene: Scene, broker: AmqpBroker, name: str) -> None:
    queue = await scene.declare()
    striking = asyncio.ensure_future(strike_for_ever(broker.health, name))
    await eventually(lambda: broker.health.deaths[name] >= 2)
    assert not broker.connected

    publishes = [
        asyncio.ensure_future(broker.publish(Message(b"", message_id=str(number)), exchange="", routing_key=queue))
        for number in range(20)
    ]
    deaths = broker.health.deaths[name]
    await eventually(lambda: broker.health.deaths[name] > deaths)
    striking.cancel()

    await asyncio.gather(*publishes)
    await eventually(lambda: broker.connected)
    assert await scene.ready(queue) >= 20
