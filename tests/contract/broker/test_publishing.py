"""What a queue does that may hold only so much and drops its oldest: it refuses nobody."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from coditect.broker.port import ASTRAY_SECONDS
from coditect.broker.topology import Binding, ExchangeType, QueueType
from coditect.errors import InvalidTask, NotFound, Overloaded, PublishUnconfirmed, Unroutable
from coditect.model.message import Message
from tests.contract.broker.scene import (
    FaultyBroker,
    Scene,
    bodies,
    collected,
    empty,
    got,
    has_ready,
    own_headers,
    put,
    ready,
    topology,
)
from tests.support import eventually

EVERY_TYPE: dict[str, Any] = {
    "text": "grüße ☃",
    "empty": "",
    "none": None,
    "true": True,
    "negative": -7,
    "large": 2**62,
    "fraction": 1.5,
    "decimal": Decimal("1.25"),
    "bytes": bytearray(b"\x00\xff"),
    "instant": datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
    "list": [1, "two", [None, {"three": 3}]],
    "table": {"deep": {"deeper": [True]}},
    "": "a name may be empty",
}


@pytest.mark.parametrize("kind", list(QueueType))
async def test_every_property_and_header_arrives_as_it_was_published(broker: FaultyBroker, queue: str) -> None:
    message = Message(
        b'{"pr": 42}',
        headers=EVERY_TYPE,
        message_id="0192-id",
        correlation_id="correlation",
        reply_to="reply.somebody",
        type="coditect.task.v1",
        content_type="application/json",
        expiration_ms=60_000,
        app_id="tests",
    )

    await broker.publish(message, exchange="", routing_key=queue)

    delivery = await got(broker, queue)
    assert own_headers(delivery.message) == EVERY_TYPE
    for name in ("body", "message_id", "correlation_id", "reply_to", "type", "content_type"):
        assert getattr(delivery.message, name) == getattr(message, name), name
    assert (delivery.message.expiration_ms, delivery.message.app_id) == (60_000, "tests")
    assert (delivery.exchange, delivery.routing_key, delivery.queue) == ("", queue, queue)


async def test_properties_that_were_not_sent_arrive_as_none(broker: FaultyBroker, queue: str) -> None:
    await broker.publish(Message(b"x", content_type=None), exchange="", routing_key=queue)

    delivery = await got(broker, queue)
    message = delivery.message
    assert own_headers(message) == {}
    assert {message.correlation_id, message.reply_to, message.type, message.app_id} == {None}
    assert {message.content_type, message.expiration_ms} == {None}


@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 262_128, 400_000])  # 131,064 are a full frame
async def test_body_of_any_size_arrives_whole(broker: FaultyBroker, queue: str, size: int) -> None:
    body = bytes(index % 251 for index in range(size))

    await put(broker, queue, body)

    assert await empty(broker, queue) == [body]


@pytest.mark.parametrize(
    "fields",
    [
        *({"headers": {"a": value}} for value in (..., {1, 2}, 2**64, [{"b": ...}], "\ud800")),
        *({field: "ü" * 128} for field in ("message_id", "correlation_id", "reply_to", "type", "app_id")),
    ],
    ids=str,
)
async def test_what_amqp_cannot_carry_is_refused_before_anything_is_sent(
    broker: FaultyBroker, queue: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidTask):
        await broker.publish(Message(b"x", **fields), exchange="", routing_key=queue, timeout_seconds=5)

    await put(broker, queue, b"next")
    assert await empty(broker, queue) == [b"next"]


async def test_bytes_and_tuples_in_headers_arrive_as_byte_arrays_and_lists(broker: FaultyBroker, queue: str) -> None:
    headers = {"bytes": b"\xff", "tuple": (1, b"\x00")}

    await broker.publish(Message(b"x", headers), exchange="", routing_key=queue, timeout_seconds=5)

    delivery = await got(broker, queue)
    assert own_headers(delivery.message) == {"bytes": bytearray(b"\xff"), "tuple": [1, bytearray(b"\x00")]}


async def test_unroutable_message_raises_and_names_the_key(scene: Scene, broker: FaultyBroker) -> None:
    key = scene.name("nobody")

    with pytest.raises(Unroutable) as caught:
        await broker.publish(Message(b"x"), exchange="", routing_key=key)

    assert caught.value.facts["routing_key"] == key


async def test_publish_to_a_missing_exchange_is_refused_at_once_and_the_next_publish_works(
    scene: Scene, broker: FaultyBroker, queue: str
) -> None:
    async with asyncio.timeout(ASTRAY_SECONDS / 3):
        with pytest.raises(NotFound):
            await broker.publish(Message(b"x"), exchange=scene.name("nowhere"), routing_key="key")

    await put(broker, queue, b"next")
    assert await empty(broker, queue) == [b"next"]


async def test_concurrent_publishes_all_arrive_once(broker: FaultyBroker, queue: str) -> None:
    numbers = [str(number).encode() for number in range(300)]

    await asyncio.gather(*(put(broker, queue, number) for number in numbers))

    assert sorted(await empty(broker, queue)) == sorted(numbers)


async def test_promise_is_told_what_became_of_a_post(scene: Scene, broker: FaultyBroker, queue: str) -> None:
    loop = asyncio.get_running_loop()
    taken, lost, refused = (loop.create_future() for _ in range(3))

    broker.post(Message(b"x"), taken, exchange="", routing_key=queue)
    broker.post(Message(b"x"), lost, exchange="", routing_key=scene.name("nowhere"))
    broker.post(Message(b"x", headers={"set": {1, 2}}), refused, exchange="", routing_key=queue)

    assert await taken is None
    with pytest.raises(Unroutable):
        await lost
    with pytest.raises(InvalidTask):
        await refused
    assert await empty(broker, queue) == [b"x"]


async def test_post_outlasts_the_loss_of_the_connection(broker: FaultyBroker, queue: str) -> None:
    promises = [asyncio.get_running_loop().create_future() for _ in range(20)]

    for number, promise in enumerate(promises):
        broker.post(Message(str(number).encode()), promise, exchange="", routing_key=queue)
    broker.drop()

    assert await asyncio.gather(*promises) == [None] * 20
    assert set(await empty(broker, queue)) == {str(number).encode() for number in range(20)}


async def fill(broker: FaultyBroker, queue: str) -> int:
    """Publishes until the broker refuses; RabbitMQ lets a few more in than the limit says."""
    for taken in range(100):
        try:
            await broker.publish(Message(b"x"), exchange="", routing_key=queue, wait_when_full=False)
        except Overloaded:
            return taken
    raise AssertionError("the queue never refused")


@pytest.mark.parametrize("kind", list(QueueType))
async def test_full_queue_refuses_at_once_when_the_publisher_does_not_wait(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    queue = await scene.declared_queue(broker, kind=kind, max_length=2)

    taken = await fill(broker, queue)

    assert taken >= 2
    assert len(await empty(broker, queue)) == taken


@pytest.mark.parametrize("kind", list(QueueType))
async def test_publish_to_a_full_queue_waits_until_there_is_room(
    scene: Scene, broker: FaultyBroker, kind: QueueType
) -> None:
    queue = await scene.declared_queue(broker, kind=kind, max_length=2)
    await fill(broker, queue)
    waiting = asyncio.create_task(put(broker, queue, b"late"))

    await asyncio.wait({waiting}, timeout=0.5)  # nothing is to happen meanwhile
    assert not waiting.done()

    delivered = await collected(broker, queue, acks=True)
    await asyncio.wait_for(waiting, 10)
    await eventually(lambda: b"late" in bodies(delivered))


async def test_publish_to_a_queue_that_stays_full_is_overloaded_after_its_time(
    scene: Scene, broker: FaultyBroker
) -> None:
    queue = await scene.declared_queue(broker, max_length=1)
    taken = await fill(broker, queue)

    await eventually(lambda: is_overloaded(broker, queue))

    assert await ready(broker, queue) == taken


async def is_overloaded(broker: FaultyBroker, queue: str) -> bool:
    """Whether a publish is refused; on a busy machine its last try may be under way as its time ends."""
    with pytest.raises((Overloaded, PublishUnconfirmed)) as ended:
        await broker.publish(Message(b"late"), exchange="", routing_key=queue, timeout_seconds=0.3)
    return ended.type is Overloaded


@pytest.mark.parametrize("kind", [QueueType.QUORUM, QueueType.CLASSIC])
@pytest.mark.parametrize(
    ("bound", "published", "kept"),
    [
        ({"max_length": 2}, [b"1", b"2", b"3"], [b"2", b"3"]),
        ({"max_length_bytes": 100}, [b"a" * 60, b"b" * 30, b"c" * 60], [b"b" * 30, b"c" * 60]),
        ({"max_length_bytes": 100}, [b"a" * 101, b"b" * 10], [b"b" * 10]),
    ],
    ids=["too many", "too many bytes", "too large"],
)
async def test_full_queue_takes_the_new_message_and_drops_its_oldest(
    scene: Scene,
    broker: FaultyBroker,
    kind: QueueType,
    bound: dict[str, Any],
    published: list[bytes],
    kept: list[bytes],
) -> None:
    queue = await scene.declared_queue(broker, kind=kind, drops_oldest=True, **bound)

    await put(broker, queue, *published)

    await eventually(lambda: has_ready(broker, queue, len(kept)))
    assert await empty(broker, queue) == kept


async def test_full_queue_of_copies_does_not_hold_up_the_original(scene: Scene, broker: FaultyBroker) -> None:
    source = scene.exchange("source", ExchangeType.FANOUT)
    copies, original = scene.queue("copies", max_length=1, drops_oldest=True), scene.queue("original")
    bindings = [Binding(source.name, one.name) for one in (copies, original)]
    await broker.declare(topology(source, copies, original, *bindings))

    for _ in range(5):
        await broker.publish(Message(b"x"), exchange=source.name, routing_key="", wait_when_full=False)

    assert await ready(broker, original.name) == 5
