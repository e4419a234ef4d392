"""A classic queue's process dies between handing over a message and confirming it: the broker refuses what it gave."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import QueueType
from coditect.model.message import Message
from coditect.wire.tasks import SENT_AGAIN
from tests.faults.conftest import declared
from tests.faults.node import Node
from tests.support import eventually

pytestmark = pytest.mark.servers
STORE = 'rabbit_vhost_msg_store:vhost_store_pid(<<"/">>, msg_store_persistent)'
"""The process that writes bodies of more than 4 kB, without which no such message is confirmed."""

COMMANDS_SECONDS = 150.0
"""More than three commands to the broker take on a busy machine whose Erlang has no `erl_call`."""


async def test_message_that_was_delivered_and_refused_is_sent_again_with_a_mark(
    node: Node, observer: AmqpBroker
) -> None:
    seen: list[tuple[str | None, bool]] = []

    def take(delivery: Delivery) -> None:
        seen.append((delivery.message.message_id, SENT_AGAIN in delivery.message.headers))

    async with AmqpBroker(node.url, name="sender") as broker, declared(observer, QueueType.CLASSIC) as queue:
        await broker.consume(queue, take, prefetch=10)
        name = f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'
        await node.evaluate(f"sys:suspend({STORE}).")
        try:
            message = Message(b"x" * 10_000, message_id="twice")
            sending = broker.publish(message, exchange="", routing_key=queue, timeout_seconds=COMMANDS_SECONDS)
            publish = asyncio.ensure_future(sending)
            await eventually(lambda: seen)
            unconfirmed = not publish.done()
            killed = f"{{ok, Queue}} = rabbit_amqqueue:lookup({name}), exit(amqqueue:get_pid(Queue), kill)."
            await node.evaluate(killed)
        finally:
            await node.evaluate(f"sys:resume({STORE}).")
        await publish

        assert unconfirmed
        assert seen[0] == ("twice", False)
        await eventually(lambda: ("twice", True) in seen)
