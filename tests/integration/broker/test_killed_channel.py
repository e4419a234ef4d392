"""The broker closes a channel over one call; its neighbours on that channel must not suffer."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.abc import AbstractConnection

from coditect.broker.port import Delivery, QueueStats
from coditect.broker.rabbitmq import AmqpBroker, declare
from coditect.errors import CoditectError, NotFound
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


async def test_consumers_go_on_when_their_channel_is_closed_over_an_unknown_delivery(
    scene: Scene, broker: AmqpBroker
) -> None:
    one, two = await scene.declare("one"), await scene.declare("two")
    held: list[Delivery] = []
    lost: list[str] = []
    for queue in (one, two):
        await broker.consume(queue, held.append, prefetch=1, group="g", on_lost=lambda queue=queue: lost.append(queue))  # type: ignore[misc]
    await broker.publish(Message(b"held"), exchange="", routing_key=one)
    await eventually(lambda: len(held) == 1)

    await _break_channel(broker, "g")
    await eventually(lambda: len(held) == 2)
    await broker.publish(Message(b"next"), exchange="", routing_key=two)

    await eventually(lambda: len(held) == 3)
    assert (held[0].lost, held[1].lost, held[1].redelivered) == (True, False, True)
    assert sorted(lost) == sorted([one, two])
    await eventually(lambda: broker.connected)


async def _break_channel(broker: AmqpBroker, group: str) -> None:
    """406: the broker knows no such delivery."""
    channel = broker._groups[group]._channel
    assert channel is not None
    await channel.basic_ack(999_999)


async def test_consumers_of_another_group_notice_nothing(scene: Scene, broker: AmqpBroker) -> None:
    one, two = await scene.declare("one"), await scene.declare("two")
    held: list[Delivery] = []
    lost: list[bool] = []
    await broker.consume(one, lambda _: None, prefetch=1, group="broken")
    await broker.consume(two, held.append, prefetch=1, group="whole", on_lost=lambda: lost.append(True))
    await broker.publish(Message(b"held"), exchange="", routing_key=two)
    await eventually(lambda: len(held) == 1)
    tag = next(iter(broker._groups["broken"].subscriptions)).tag

    await _break_channel(broker, "broken")
    await eventually(lambda: next(iter(broker._groups["broken"].subscriptions)).tag not in (tag, None))

    assert not held[0].lost
    assert lost == []


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


async def test_rare_call_on_a_queue_that_vanished_is_a_typed_error(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare()
    await scene.observer.delete_queue(queue)

    with pytest.raises(CoditectError, match=queue):
        await broker.consume(queue, lambda _: None, prefetch=1, group="g")

    assert broker.connected
