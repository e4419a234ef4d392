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
    queue, got = await scene.declare(), list[str | None]()

    def take(delivery: Delivery) -> None:
        got.append(delivery.message.message_id)
        delivery.ack()

    await broker.consume(queue, take, prefetch=1, group="g")  # each message waits for the ack of the one before
    names = loops(broker.health, critical=True)
    assert names == CONNECTIONS | {"watch consumers", "watch publishes", "watch g"}

    for number, name in enumerate(sorted(names)):
        await strike_once(broker.health, name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await eventually(lambda name=name: broker.health.deaths[name] == 1)  # type: ignore[misc]
        assert broker.health.why_not() != ""

        await eventually(lambda: broker.connected and not broker.health.why_not())
        await broker.publish(Message(b"", message_id=str(number)), exchange="", routing_key=queue)
        await eventually(lambda number=number: str(number) in got)  # type: ignore[misc]


async def test_loop_that_waits_for_a_deleted_queue_and_dies_is_healed(scene: Scene, broker: AmqpBroker) -> None:
    queue, got = await scene.declare(), list[Delivery]()
    await broker.consume(queue, got.append, prefetch=10, group="g")
    name = f"resubscribe {queue}"
    await scene.observer.delete_queue(queue)
    await eventually(lambda: name in loops(broker.health, critical=True))

    await strike_once(broker.health, name)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert repr(name) in broker.health.why_not()

    await scene.declare()
    await eventually(lambda: broker.connected and not broker.health.why_not())
    await broker.publish(Message(b""), exchange="", routing_key=queue)
    await eventually(lambda: len(got) == 1)
    assert broker.health.deaths == {name: 1}


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
