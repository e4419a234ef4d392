"""The broker closes a channel over one call; its neighbours on that channel must not suffer."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.abc import AbstractConnection, DeliveredMessage

from coditect.broker.port import Delivery, QueueStats
from coditect.broker.rabbitmq import AmqpBroker, declare
from coditect.broker.rabbitmq.channels import open_channel
from coditect.errors import NotFound
from coditect.model.message import Message
from tests.integration.broker.conftest import Scene
from tests.support import eventually

pytestmark = pytest.mark.servers


async def test_missing_exchange_fails_its_own_publish_and_no_other(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare()
    missing = f"{scene.prefix}.missing"

    def publish(name: str, exchange: str) -> asyncio.Future[None]:
        message = Message(b"x" * 500, message_id=name)
        return asyncio.ensure_future(broker.publish(message, exchange=exchange, routing_key=queue))

    neighbours = [publish(f"m-{number}", "") for number in range(100)]
    wrong = [publish(f"wrong-{number}", missing) for number in range(5)]
    neighbours += [publish(f"m-{number}", "") for number in range(100, 200)]
    refused = await asyncio.gather(*wrong, return_exceptions=True)
    await asyncio.gather(*neighbours)

    assert {type(one) for one in refused} == {NotFound}
    arrived = set()
    while (delivery := await scene.observer.get(queue)) is not None:
        arrived.add(delivery.message.message_id)
    assert arrived == {f"m-{number}" for number in range(200)}
    assert broker.connected


async def test_consumers_go_on_when_their_channel_is_closed_and_those_of_another_group_notice_nothing(
    scene: Scene, broker: AmqpBroker
) -> None:
    one, two, apart = [await scene.declare(short) for short in ("one", "two", "apart")]
    held: list[Delivery] = []
    kept: list[Delivery] = []
    lost: list[str] = []
    for queue in (one, two):
        await broker.consume(queue, held.append, prefetch=1, group="g", on_lost=lambda queue=queue: lost.append(queue))  # type: ignore[misc]
    await broker.consume(apart, kept.append, prefetch=1, group="whole", on_lost=lambda: lost.append(apart))
    for queue in (one, apart):
        await broker.publish(Message(b"held"), exchange="", routing_key=queue)
    await eventually(lambda: len(held) == len(kept) == 1)

    await _break_channel(broker, "g")
    await eventually(lambda: len(held) == 2)
    await broker.publish(Message(b"next"), exchange="", routing_key=two)

    await eventually(lambda: len(held) == 3)
    assert (held[0].lost, held[1].lost, held[1].redelivered, kept[0].lost) == (True, False, True, False)
    assert sorted(lost) == sorted([one, two])
    await eventually(lambda: broker.connected)


async def _break_channel(broker: AmqpBroker, group: str) -> None:
    """406: the broker knows no such delivery."""
    channel = broker._groups[group]._open
    assert channel is not None
    await channel.channel.basic_ack(999_999)


async def test_channel_that_nobody_reads_holds_up_no_other(scene: Scene, broker: AmqpBroker) -> None:
    """The broker sends what it still has for a channel that was given up because a queue did not answer."""
    queue = await scene.declare()
    channel = await open_channel(await broker._incoming.connection())
    await channel.basic_consume(queue, _ignore)
    await channel._cancel_tasks()  # as when the broker does not answer the close of a channel in time
    await asyncio.gather(*(broker.publish(Message(b""), exchange="", routing_key=queue) for _ in range(50)))

    async with asyncio.timeout(5):
        assert await broker.stats(queue) is not None


async def _ignore(delivered: DeliveredMessage) -> None:
    """Do nothing."""


async def test_missing_queue_leaves_its_neighbours_their_deliveries(
    scene: Scene, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    look = declare.stats

    async def counted(connection: AbstractConnection, queue: str) -> QueueStats | None:
        found = await look(connection, queue)
        tries.append(queue)
        return found

    monkeypatch.setattr(declare, "stats", counted)
    gone, stays = await scene.declare("gone"), await scene.declare("stays")
    held: list[Delivery] = []
    lost: list[bool] = []
    consumer = await broker.consume(gone, lambda _: None, prefetch=1, group="g")
    await broker.consume(stays, held.append, prefetch=1, group="g", on_lost=lambda: lost.append(True))
    await broker.publish(Message(b"held"), exchange="", routing_key=stays)
    await eventually(lambda: len(held) == 1)

    await scene.observer.delete_queue(gone)
    await eventually(lambda: not consumer.active)
    await eventually(lambda: tries.count(gone) >= 3)

    assert (held[0].lost, lost) == (False, [])
    assert not broker.connected


async def test_missing_queue_does_not_keep_a_new_connection_from_its_other_consumers(
    scene: Scene, broker: AmqpBroker
) -> None:
    gone, stays = await scene.declare("gone"), await scene.declare("stays")
    seen: list[Delivery] = []
    lonely = await broker.consume(gone, seen.append, prefetch=1, group="one")
    await broker.consume(stays, seen.append, prefetch=1, group="two")
    await scene.observer.delete_queue(gone)
    await eventually(lambda: not lonely.active)

    broker.drop()
    await broker.publish(Message(b"x"), exchange="", routing_key=stays)

    await eventually(lambda: len(seen) == 1)
    assert not lonely.active and not broker.connected
    await scene.declare("gone")
    await eventually(lambda: lonely.active and broker.connected)
