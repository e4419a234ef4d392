"""What differs between RabbitMQ 3.10 and 4.0: each test shows a row of the table in docs/topology.md.

They speak AMQP to the broker without our code between; what Coditect makes of it is for the other tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiormq
import pytest
from aiormq.abc import DeliveredMessage
from pamqp.common import FieldValue

from tests.support import eventually
from tests.versions import NEW, OLD, Wire, headers_of, wire_to

pytestmark = pytest.mark.servers
MIB = 1024 * 1024
HAND_BACKS = 25
"""More than the delivery limit that 4.0 gives to a queue without one."""


@pytest.fixture
async def wire(amqp_url: str) -> AsyncIterator[Wire]:
    async with wire_to(amqp_url) as connected:
        yield connected


async def deliveries(wire: Wire, queue: str) -> int:
    """How often a message is delivered that is handed back each time."""
    await wire.put(queue)
    for number in range(HAND_BACKS):
        message = await next_or_gone(wire, queue)
        if message is None:
            return number
        await wire.hand_back(message)
    return HAND_BACKS


async def next_or_gone(wire: Wire, queue: str) -> DeliveredMessage | None:
    """The next message; None if the queue holds none, also when looked at again."""
    for _ in range(10):
        message = await wire.get(queue)
        if message is not None:
            return message
        await asyncio.sleep(0.01)
    return None


async def arrival(wire: Wire, queue: str) -> DeliveredMessage:
    """The queue's first message, once it is there."""
    arrived: list[DeliveredMessage] = []

    async def look() -> bool:
        message = await wire.get(queue)
        arrived.extend([message] if message else [])
        return bool(arrived)

    await eventually(look)
    return arrived[0]


async def timer(wire: Wire, **more: FieldValue) -> tuple[str, str]:
    """A queue that gives its messages up after 30 ms, and the queue they come to."""
    target = await wire.queue("target", delivery_limit=10)
    source = await wire.queue(
        "source",
        delivery_limit=10,
        message_ttl=30,
        dead_letter_exchange="",
        dead_letter_routing_key=target,
        **more,
    )
    return source, target


def death(queue: str, reason: str) -> dict[str, FieldValue]:
    """An entry of `x-death` as a publisher may copy it."""
    return {
        "queue": queue,
        "reason": reason,
        "count": 3,
        "exchange": "",
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "routing-keys": ["a"],
    }


@pytest.mark.parametrize(
    ("limit", "old", "new"),
    [({}, HAND_BACKS, 21), ({"delivery_limit": -1}, 1, HAND_BACKS), ({"delivery_limit": 3}, 4, 4)],
    ids=["none", "-1", "3"],
)
async def test_how_often_a_message_is_delivered_by_delivery_limit(
    wire: Wire, limit: dict[str, FieldValue], old: int, new: int
) -> None:
    queue = await wire.queue("queue", **limit)

    assert await deliveries(wire, queue) == wire.expected({OLD: old, NEW: new})


async def test_place_of_a_message_handed_back_to_a_queue_without_a_delivery_limit(wire: Wire) -> None:
    queue = await wire.queue("queue")
    for body in (b"1", b"2", b"3"):
        await wire.put(queue, body)

    await wire.hand_back(await arrival(wire, queue))

    order = [(await arrival(wire, queue)).body for _ in range(3)]
    assert order == wire.expected({OLD: [b"2", b"3", b"1"], NEW: [b"1", b"2", b"3"]})


async def test_delivery_count_of_a_first_delivery_and_of_the_next(wire: Wire) -> None:
    queue = await wire.queue("queue", delivery_limit=10)
    await wire.put(queue)

    first = await arrival(wire, queue)
    await wire.hand_back(first)
    second = await arrival(wire, queue)

    assert headers_of(first) == wire.expected({OLD: {"x-delivery-count": 0}, NEW: {}})
    assert headers_of(second) == {"x-delivery-count": 1}


async def test_delivery_count_that_a_publisher_wrote(wire: Wire) -> None:
    queue = await wire.queue("queue", delivery_limit=10)
    await wire.put(queue, headers={"x-delivery-count": 77})

    first = await arrival(wire, queue)
    await wire.hand_back(first)
    second = await arrival(wire, queue)

    assert headers_of(first)["x-delivery-count"] == wire.expected({OLD: 0, NEW: 77})
    assert headers_of(second)["x-delivery-count"] == 1


async def test_expired_message_whose_publisher_copied_a_history_that_names_the_target(wire: Wire) -> None:
    source, target = await timer(wire)
    await wire.put(source, headers={"x-death": [death(target, "expired")]})
    await wire.put(source, b"after it")

    first = await arrival(wire, target)

    assert first.body == wire.expected({OLD: b"after it", NEW: b"x"})


async def test_history_that_a_publisher_copied(wire: Wire) -> None:
    source, target = await timer(wire)
    await wire.put(source, headers={"x-death": [death("elsewhere", "rejected")], "x-first-death-queue": "elsewhere"})

    headers = headers_of(await arrival(wire, target))

    deaths = headers["x-death"]
    assert isinstance(deaths, list)
    queues = [one["queue"] for one in deaths if isinstance(one, dict)]
    assert queues == wire.expected({OLD: [source, "elsewhere"], NEW: [source]})
    assert headers["x-first-death-queue"] == wire.expected({OLD: "elsewhere", NEW: source})


async def test_headers_of_the_last_death(wire: Wire) -> None:
    source, target = await timer(wire)
    await wire.put(source)

    headers = headers_of(await arrival(wire, target))

    last = {name: value for name, value in headers.items() if name.startswith("x-last-death")}
    assert last == wire.expected(
        {
            OLD: {},
            NEW: {"x-last-death-queue": source, "x-last-death-reason": "expired", "x-last-death-exchange": ""},
        }
    )


async def test_carbon_copy_header_of_a_dead_letter_with_a_key_of_its_own(wire: Wire) -> None:
    source, target = await timer(wire)
    await wire.put(source, headers={"CC": ["copy"]})

    headers = headers_of(await arrival(wire, target))

    assert headers.get("CC") == wire.expected({OLD: None, NEW: ["copy"]})


async def test_order_of_messages_with_priorities_in_a_quorum_queue(wire: Wire) -> None:
    queue = await wire.queue("queue", delivery_limit=10)
    for priority in (0, 4, 5, 9):
        await wire.put(queue, str(priority).encode(), priority=priority)

    order = [(await arrival(wire, queue)).body for _ in range(4)]

    assert order == wire.expected({OLD: [b"0", b"4", b"5", b"9"], NEW: [b"5", b"9", b"0", b"4"]})


async def test_message_over_16_mib(wire: Wire) -> None:
    queue = await wire.queue("queue", max_length=0)
    refused = wire.expected({OLD: False, NEW: True})

    if refused:
        with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="16777216"):
            await wire.put(queue, bytes(16 * MIB + 1))
    else:
        await wire.put(queue, bytes(16 * MIB + 1))


async def test_consumer_of_a_quorum_queue_that_is_deleted_and_declared_again_at_once(wire: Wire, amqp_url: str) -> None:
    queue = await wire.queue("queue", delivery_limit=10)
    consuming = await aiormq.connect(amqp_url)
    channel = await consuming.channel()
    assert isinstance(channel, aiormq.Channel)
    served = asyncio.Event()

    async def take(_: DeliveredMessage) -> None:
        served.set()

    consumer = await channel.basic_consume(queue, take)
    told = wire.expected({OLD: False, NEW: True})

    await wire.channel.queue_delete(queue)
    await wire.queue("queue", delivery_limit=10)
    await wire.put(queue)

    if told:
        await eventually(lambda: consumer.consumer_tag not in channel.consumers)
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(served.wait(), 0.5)
        if consumer.consumer_tag in channel.consumers:  # a slow broker notices the deletion, and tells it after all
            assert await wire.get(queue) is None  # what it does not see, it holds, until its channel is closed
        await channel.close()
    await (await consuming.channel()).basic_consume(queue, take)
    await eventually(served.is_set)
    await consuming.close()


async def test_priorities_of_a_quorum_queue_and_a_global_prefetch_are_refused(wire: Wire) -> None:
    queue = await wire.queue("queue", delivery_limit=10)
    other = await wire.connection.channel()

    with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="x-max-priority"):
        await wire.queue("prioritised", max_priority=5)
    await other.basic_qos(prefetch_count=5, global_=True)
    with pytest.raises(aiormq.exceptions.ConnectionNotImplemented, match="global qos"):
        await other.basic_consume(queue, lambda _: None)  # type: ignore[arg-type, return-value]
