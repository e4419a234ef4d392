"""The broker raises a memory alarm: it blocks the connections that publish."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.cli.compose import sign_in
from coditect.errors import Overloaded, PublishUnconfirmed
from coditect.local.doctor import Check, check_server
from coditect.local.probe import broker_version
from coditect.model.message import Message
from tests.faults.node import Node
from tests.support import eventually

pytestmark = pytest.mark.servers


def publish(broker: AmqpBroker, queue: str, name: str, *, timeout_seconds: float = 150.0) -> asyncio.Future[None]:
    message = Message(b"", message_id=name)
    return asyncio.ensure_future(
        broker.publish(message, exchange="", routing_key=queue, timeout_seconds=timeout_seconds)
    )


async def is_refused(broker: AmqpBroker, queue: str) -> bool:
    """Whether a publish is refused, for that the broker has told of its alarm."""
    try:
        await publish(broker, queue, "perhaps sent", timeout_seconds=0.7)
    except Overloaded:
        return True
    except PublishUnconfirmed:
        pass
    return False


async def test_doctor_names_an_alarm(node: Node) -> None:
    async def found() -> Check:
        return await check_server("broker", node.url, broker_version, (3, 10), sign_in=sign_in)

    async with node.alarmed():
        await eventually(lambda: is_found_in_alarm(found))
    assert (await found()).ok


async def is_found_in_alarm(found: Callable[[], Awaitable[Check]]) -> bool:
    check = await found()
    return not check.ok and "rabbitmq-diagnostics alarms" in check.fix


async def test_alarm_holds_publishes_back_and_lets_consumers_go_on(
    node: Node, observer: AmqpBroker, queue: str
) -> None:
    async with AmqpBroker(node.url, name="blocked") as broker:
        await asyncio.gather(*(publish(broker, queue, f"before-{number}") for number in range(20)))
        seen: list[str | None] = []

        def take(delivery: Delivery) -> None:
            seen.append(delivery.message.message_id)
            delivery.ack()

        async with node.alarmed():
            sent = publish(broker, queue, "sent into the alarm")
            sent_in_vain = publish(broker, queue, "sent, too", timeout_seconds=1.5)
            [ended] = await asyncio.gather(sent_in_vain, return_exceptions=True)
            await eventually(lambda: is_refused(broker, queue))  # a busy broker tells of its alarm late
            waiting = publish(broker, queue, "waits")
            with pytest.raises(Overloaded) as refused:
                await publish(broker, queue, "never sent", timeout_seconds=0.7)
            blocked = broker.blocked
            await broker.consume(queue, take, prefetch=5)
            await eventually(lambda: len(seen) >= 20)
            held_back = not waiting.done()

        await asyncio.gather(sent, waiting)

        assert ended is None or isinstance(ended, PublishUnconfirmed)
        assert blocked and held_back and refused.value.retryable
        await eventually(lambda: {"sent into the alarm", "waits"} <= set(seen))
        assert "never sent" not in seen
        assert not broker.blocked


async def test_connection_that_dies_while_it_is_blocked_publishes_on_the_next_one(
    node: Node, observer: AmqpBroker, queue: str
) -> None:
    async with AmqpBroker(node.url, name="blocked") as broker:
        async with node.alarmed():
            first = publish(broker, queue, "first")
            await eventually(lambda: is_refused(broker, queue))
            second = publish(broker, queue, "second")
            await eventually(lambda: broker.blocked)
            broker.drop()
            await eventually(lambda: broker.connected)

        await asyncio.gather(first, second)

    stats = await observer.stats(queue)
    assert stats is not None and stats.messages >= 2
