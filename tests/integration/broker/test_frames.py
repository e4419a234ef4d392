"""The traps of direct frames that only a real broker sets, numbered as in docs/adr/0009-direct-frames.md."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq import connection as link
from coditect.broker.rabbitmq.publisher_channel import PublisherChannel
from coditect.broker.rabbitmq.publishing import WindowedChannel
from coditect.errors import BrokerUnavailable, CoditectError, PublishUnconfirmed, Unroutable
from coditect.model.message import Message
from tests.integration.broker.conftest import Scene
from tests.support import eventually

pytestmark = pytest.mark.servers


def publish(broker: AmqpBroker, queue: str, name: str = "", *, seconds: float = 30.0) -> asyncio.Future[None]:
    message = Message(b"x" * 100, message_id=name or None)
    return asyncio.ensure_future(broker.publish(message, exchange="", routing_key=queue, timeout_seconds=seconds))


def channel_of(broker: AmqpBroker) -> WindowedChannel:
    """Of what is published to a queue itself."""
    return broker._publisher._channels.of("", "any")


def outlet_of(broker: AmqpBroker) -> PublisherChannel:
    publisher_channel = channel_of(broker).publisher_channel
    assert isinstance(publisher_channel, PublisherChannel)
    return publisher_channel


@pytest.mark.proof
async def test_trap_1_busy_connection_is_not_taken_for_dead(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiormq gives up a connection on which it saw nothing for three heartbeats and three seconds."""
    monkeypatch.setattr(link, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(link, "LEAST_HEARTBEAT", 1)
    queue = await scene.declare()
    lost: list[bool] = []
    async with AmqpBroker(scene.url, name="busy") as broker:
        await broker.consume(queue, lambda one: one.ack(), prefetch=50, on_lost=lambda: lost.append(True))
        await publish(broker, queue)
        before = outlet_of(broker)

        until = asyncio.get_running_loop().time() + 8.0
        while asyncio.get_running_loop().time() < until:
            await asyncio.gather(*(publish(broker, queue) for _ in range(20)))

        assert lost == []
        assert outlet_of(broker) is before


async def test_trap_2_every_verdict_is_right_among_many_in_flight_with_the_same_ids(
    scene: Scene, broker: AmqpBroker
) -> None:
    queue = await scene.declare()
    keys = [queue if number % 3 else f"{scene.prefix}.nowhere.{number % 2}" for number in range(900)]

    ended = await asyncio.gather(
        *(publish(broker, key, f"id-{number // 5}") for number, key in enumerate(keys)), return_exceptions=True
    )

    assert [type(one) for one in ended] == [type(None) if key == queue else Unroutable for key in keys]
    await eventually(lambda: _holds(scene, queue, keys.count(queue)))


async def _holds(scene: Scene, queue: str, messages: int) -> bool:
    return await scene.ready(queue) == messages


async def test_trap_4_the_library_counts_none_of_our_publishes(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare()

    await asyncio.gather(*(publish(broker, queue) for _ in range(50)))

    channel = outlet_of(broker)._channel
    assert (channel.delivery_tag, len(channel.confirmations)) == (0, 0)


async def test_trap_5_slow_delivery_holds_back_no_neighbour(scene: Scene) -> None:
    queue = await scene.declare()
    await asyncio.gather(*(publish(scene.observer, queue) for _ in range(200)))
    held: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        held.append(delivery)
        if len(held) > 1:
            delivery.ack()

    async with AmqpBroker(scene.url, name="slow") as broker:
        await broker.consume(queue, take, prefetch=5)
        await eventually(lambda: len(held) == 200)

    held[0].ack()  # too late: it went back
    await eventually(lambda: _holds(scene, queue, 1))
    delivery = await scene.observer.get(queue)
    assert delivery is not None and delivery.redelivered
    assert not any(one.redelivered for one in held)


async def test_trap_6_end_of_a_channel_amid_acks_leaves_the_connection_and_its_neighbours(
    scene: Scene, broker: AmqpBroker
) -> None:
    """An ack behind the answer to `channel.close` would end the connection (504)."""
    busy, quiet = await scene.declare("busy"), await scene.declare("quiet")
    lost: list[str] = []
    taken: list[str | None] = []

    def take(delivery: Delivery) -> None:
        taken.append(delivery.message.message_id)
        ack_after(len(taken) % 40, delivery)

    def ack_after(turns: int, delivery: Delivery) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(ack_after, turns - 1, delivery)
        else:
            delivery.ack()

    await broker.consume(busy, take, prefetch=100, group="busy", on_lost=lambda: lost.append("busy"))
    await broker.consume(quiet, lambda _: None, prefetch=1, group="quiet", on_lost=lambda: lost.append("quiet"))

    for turn in range(5):
        publishes = [publish(scene.observer, busy, f"m-{turn}-{number}") for number in range(300)]
        await eventually(lambda turn=turn: f"m-{turn}-20" in taken)  # type: ignore[misc]
        channel = broker._groups["busy"]._open
        assert channel is not None
        await channel.channel.basic_ack(2**62)
        await asyncio.gather(*publishes)
        await eventually(lambda turn=turn: f"m-{turn}-299" in taken and len(lost) > turn)  # type: ignore[misc]

    await eventually(lambda: _holds(scene, busy, 0))
    assert lost == ["busy"] * 5


async def test_trap_7_handler_that_raises_hurts_no_neighbour(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare()
    taken: list[bytes] = []
    lost: list[bool] = []

    def take(delivery: Delivery) -> None:
        if delivery.message.message_id == "poison":
            raise RuntimeError("a handler's bug")
        taken.append(delivery.message.body)
        delivery.ack()

    await broker.consume(queue, take, prefetch=50, on_lost=lambda: lost.append(True))
    await asyncio.gather(*(publish(broker, queue, "poison" if number == 50 else "") for number in range(100)))

    await eventually(lambda: len(taken) == 99)
    await eventually(lambda: _holds(scene, queue, 0))
    assert lost == [] and broker.connected


async def test_consumers_that_come_and_go_leave_nothing_behind(scene: Scene, broker: AmqpBroker) -> None:
    queue = await scene.declare()
    stays = await broker.consume(queue, lambda one: one.ack(), prefetch=5)
    for _ in range(20):
        leaving = await broker.consume(queue, lambda one: one.ack(), prefetch=5)
        publishes = [publish(broker, queue) for _ in range(10)]
        await leaving.cancel()
        await asyncio.gather(*publishes)

    assert stays.active
    await eventually(lambda: _holds(scene, queue, 0))
    assert len(broker._groups[""]._consumer_channel._consumers) == 1  # type: ignore[union-attr]


async def test_acked_delivery_never_comes_again_after_a_clean_end(scene: Scene) -> None:
    """The ack that leaves in the last turn stands before `channel.close`."""
    queue = await scene.declare()
    taken: list[str] = []
    names = [f"m-{number}" for number in range(600)]
    await asyncio.gather(*(publish(scene.observer, queue, name) for name in names))

    for _ in range(12):
        taken += await _take_fifty(scene, queue)

    assert sorted(taken) == sorted(names)
    assert await scene.ready(queue) == 0


async def _take_fifty(scene: Scene, queue: str) -> list[str]:
    """Acks fifty and leaves at once."""
    enough = asyncio.Event()
    acked: list[str] = []

    def take(delivery: Delivery) -> None:
        if not enough.is_set():
            delivery.ack()
            acked.append(str(delivery.message.message_id))
        if len(acked) == 50:
            enough.set()

    async with AmqpBroker(scene.url, name="leaving") as broker:
        for group in ("one", "two"):
            await broker.consume(queue, take, prefetch=20, group=group)
        await enough.wait()
    return acked


async def test_nobody_waits_for_a_publish_of_a_broker_that_was_left(scene: Scene) -> None:
    queue = await scene.declare()
    async with AmqpBroker(scene.url, name="leaving") as broker:
        await publish(broker, queue)
        sent = [publish(broker, queue) for _ in range(100)]
        broker.drop()
        held_up = [publish(broker, queue) for _ in range(100)]
        await asyncio.sleep(0)

    async with asyncio.timeout(2):
        ended = await asyncio.gather(*sent, *held_up, return_exceptions=True)
    with pytest.raises(BrokerUnavailable):
        async with asyncio.timeout(2):
            await publish(broker, queue)
    with pytest.raises(CoditectError):
        async with asyncio.timeout(2):
            await broker.stats(queue)

    assert {type(one) for one in ended} <= {type(None), PublishUnconfirmed, BrokerUnavailable}


async def test_publishes_that_are_given_up_leave_their_places(scene: Scene) -> None:
    queue = await scene.declare()
    async with AmqpBroker(scene.url, name="hasty", window=10) as broker:
        await publish(broker, queue)
        for turn in range(30):
            hasty = [publish(broker, queue) for _ in range(25)]
            if turn % 2:
                await asyncio.sleep(0)
            if turn % 7 == 3:
                broker.drop()
            for one in hasty:
                one.cancel()
            await asyncio.wait(hasty)

        await asyncio.gather(*(publish(broker, queue) for _ in range(50)))
        await eventually(lambda: channel_of(broker).window._free == 10)
