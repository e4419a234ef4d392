"""The broker is killed with -9 and started again on its data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq import broker as adapter
from coditect.broker.topology import QueueType
from coditect.errors import BrokerUnavailable, PublishUnconfirmed
from coditect.local.probe import port_open
from coditect.model.message import Message
from tests.faults.conftest import declared
from tests.faults.load import Load
from tests.faults.node import Node
from tests.support import eventually, patient

pytestmark = pytest.mark.servers
KILLS = 3
PROMISED_SECONDS = 1.0
"""From the opening of the port to the first confirm and the first delivery; it may take longer once."""


@pytest.fixture
async def old_queue(node: Node, queue: str) -> str:
    """A queue that outlives a kill."""
    await node.write_to_disk()
    return queue


@pytest.fixture
async def broker(node: Node) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(node.url, name="under load", watch_seconds=0.5) as connected:
        yield connected


@pytest.mark.proof
async def test_no_confirmed_message_is_lost_when_the_broker_is_killed_under_load(
    node: Node, broker: AmqpBroker, old_queue: str, record_property: Callable[[str, object], None]
) -> None:
    load = Load(broker, old_queue)
    consumer = await broker.consume(old_queue, load.take, prefetch=200)
    back_after: list[float] = []

    async with load.publishing(in_flight=200):
        for _ in range(KILLS):
            before = len(load.confirmed)
            await eventually(lambda before=before: len(load.confirmed) > before + 1_000)  # type: ignore[misc]
            back_after.append(await _restart(node, load))
    await eventually(lambda: not load.lost)

    record_property("back_after_seconds", back_after)
    print(f"back after {back_after}, {len(load.confirmed)} confirmed, {load.doubled} doubled")
    assert load.failed == []
    assert consumer.active and broker.connected
    assert min(back_after) <= patient(PROMISED_SECONDS)


async def _restart(node: Node, load: Load) -> float:
    """Kills and starts the broker; returns the seconds from its open port to a fresh confirm and delivery."""
    clock = asyncio.get_running_loop().time
    await node.kill()
    confirmed, taken = len(load.confirmed), load.taken.total()
    starting = asyncio.create_task(node.start())
    probe = port_open(int(node.url.rpartition(":")[2]))
    await eventually(probe, seconds=100)
    opened = clock()
    await eventually(lambda: len(load.confirmed) > confirmed and load.taken.total() > taken)
    back_after = clock() - opened
    await starting
    return back_after


@pytest.mark.proof
async def test_publish_during_an_outage_waits_or_ends_in_the_right_error_at_its_deadline(
    node: Node, broker: AmqpBroker, old_queue: str
) -> None:
    await node.kill()
    await eventually(lambda: not broker.connected)
    patient = asyncio.ensure_future(broker.publish(Message(b"patient"), exchange="", routing_key=old_queue))

    with pytest.raises(BrokerUnavailable) as caught:
        await broker.publish(Message(b"hasty"), exchange="", routing_key=old_queue, timeout_seconds=0.5)
    with pytest.raises(BrokerUnavailable), pytest.MonkeyPatch.context() as patched:
        patched.setattr(adapter, "BROKER_CALL_SECONDS", 2.0)  # rare calls have a limit of their own
        await asyncio.wait_for(broker.stats(old_queue), 20)
    still_waits = not patient.done()
    await node.start()
    await patient

    assert caught.value.retryable
    assert still_waits
    delivery = await broker.get(old_queue)
    assert delivery is not None and delivery.message.body == b"patient"
    assert await broker.get(old_queue) is None


@pytest.mark.proof
async def test_reply_that_was_confirmed_arrives_after_a_restart_from_a_classic_reply_queue(
    node: Node, broker: AmqpBroker, observer: AmqpBroker
) -> None:
    async with declared(observer, QueueType.CLASSIC) as replies:
        await node.write_to_disk()
        for number in range(50):
            message = Message(b"", message_id=f"reply-{number}")
            await broker.publish(message, exchange="", routing_key=replies)
        seen: set[str | None] = set()

        def take(delivery: Delivery) -> None:
            seen.add(delivery.message.message_id)
            delivery.ack()

        await node.kill()
        await node.start()
        await eventually(lambda: broker.connected)
        await broker.consume(replies, take, prefetch=10)

        await eventually(lambda: seen == {f"reply-{number}" for number in range(50)})


@pytest.mark.proof
async def test_sent_publish_whose_broker_died_is_unconfirmed_at_its_deadline(
    node: Node, broker: AmqpBroker, old_queue: str
) -> None:
    await broker.publish(Message(b"the channel is open"), exchange="", routing_key=old_queue)
    async with node.frozen():
        publishing = asyncio.ensure_future(
            broker.publish(Message(b"x"), exchange="", routing_key=old_queue, timeout_seconds=1.0)
        )
        await asyncio.wait({publishing}, timeout=0.2)
        await node.kill()

    with pytest.raises(PublishUnconfirmed) as caught:
        await publishing
    await node.start()

    assert caught.value.retryable
