"""Nothing grows: neither with reconnects, nor with channels that come and go."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import psutil
import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq.channels import CHANNEL_CALL_SECONDS
from coditect.broker.rabbitmq.declare import StatsReader
from coditect.errors import NotFound
from coditect.model.message import Message
from tests.integration.broker.conftest import Scene
from tests.support import eventually

pytestmark = pytest.mark.servers
RECONNECTS = 8
LAST_CALL_SECONDS = CHANNEL_CALL_SECONDS + 5
"""A call under way at the cut may miss that it is canceled: Python 3.11's `wait_for` swallows a cancellation that
comes together with what it waits for. The library then gives up the call, and the connection it belonged to, when the
call's own time is over."""


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    tasks: int
    files: int
    channels: int

    @classmethod
    def by(cls, broker: AmqpBroker) -> Held:
        connections = [link._connection for link in (broker._incoming, broker._outgoing)]
        channels = sum(len(getattr(one, "channels", ())) for one in connections)
        return cls(len(asyncio.all_tasks()), psutil.Process().num_fds(), channels)


@pytest.mark.proof
async def test_reconnects_leave_nothing_behind(scene: Scene, broker: AmqpBroker) -> None:
    queues = [await scene.declare(short) for short in ("one", "two", "three")]
    seen: list[bytes] = []

    def take(delivery: Delivery) -> None:
        seen.append(delivery.message.body)
        delivery.ack()

    for queue in queues:
        await broker.consume(queue, take, prefetch=5, group=queue)

    async def once() -> None:
        expected = len(seen) + len(queues)
        broker.drop()
        for queue in queues:
            await broker.publish(Message(b"x"), exchange="", routing_key=queue)
        await eventually(lambda: len(seen) >= expected and broker.connected)

    await once()
    await eventually(lambda: Held.by(broker).tasks < 60)
    before = Held.by(broker)

    for _ in range(RECONNECTS):
        await once()

    await eventually(lambda: _no_more(Held.by(broker), before), seconds=LAST_CALL_SECONDS)


def _no_more(now: Held, before: Held) -> bool:
    return now.tasks <= before.tasks and now.files <= before.files and now.channels <= before.channels


async def test_refused_calls_leave_no_channel_behind(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare()
    await broker.publish(Message(b"x"), exchange="", routing_key=queue)
    before = Held.by(broker)

    for _ in range(RECONNECTS):
        assert await broker.stats(f"{scene.prefix}.nowhere") is None
        with pytest.raises(NotFound):
            await broker.get(f"{scene.prefix}.nowhere")

    await eventually(lambda: _no_more(Held.by(broker), before))


async def test_looks_share_a_channel_that_a_missing_queue_costs_and_the_end_gives_back(
    scene: Scene, broker: AmqpBroker
) -> None:
    queue = await scene.declare()
    await broker.publish(Message(b"x"), exchange="", routing_key=queue)
    connection = await broker._outgoing.connection()  # nothing else opens a channel on it
    before = len(connection.channels)
    looks = StatsReader()

    for name, messages in ((queue, 1), (f"{scene.prefix}.nowhere", None), (queue, 1), (queue, 1)):
        found = await looks.stats(connection, name)
        assert (found and found.messages) == messages
    assert len(connection.channels) == before + 1

    await looks.close()
    assert len(connection.channels) == before


async def test_broker_can_be_left_while_its_consumers_are_looked_at(scene: Scene) -> None:
    """A cancellation that arrives together with the broker's answer used to be swallowed."""
    queue = await scene.declare()

    for turn in range(25):
        leaving = AmqpBroker(scene.url, name="leaving", watch_seconds=0.001)
        async with asyncio.timeout(5), leaving as broker:
            await broker.consume(queue, lambda _: None, prefetch=1)
            await asyncio.sleep(turn / 1_000)

    assert [task for task in asyncio.all_tasks() if task.get_name() == "watch consumers"][1:] == []
