"""A message that the broker finds too large closes the channel that every publish of a process shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from coditect.errors import TooLarge
from coditect.model.message import Message
from tests.faults.node import Node

pytestmark = pytest.mark.servers
LIMIT_BYTES = 100_000
"""Of the broker in this test; RabbitMQ's own are 128 MiB (3.10) and 16 MiB (4.0)."""


@pytest.fixture
async def strict_node(node: Node) -> AsyncIterator[Node]:
    limit = await node.evaluate("application:get_env(rabbit, max_message_size, 134217728).")
    await _set_limit(node, str(LIMIT_BYTES))
    yield node
    await _set_limit(node, limit.strip())


async def _set_limit(node: Node, limit: str) -> None:
    """Where 3.10 and where 4.0 look for it."""
    await node.evaluate(
        f"application:set_env(rabbit, max_message_size, {limit}), persistent_term:put(max_message_size, {limit})."
    )


async def test_message_over_the_brokers_limit_is_too_large_and_its_neighbours_arrive(
    strict_node: Node, queue: str
) -> None:
    async with AmqpBroker(strict_node.url, name="publisher") as broker:
        messages = [Message(b"x" * (LIMIT_BYTES + 1 if number == 10 else 10)) for number in range(20)]

        outcomes = await asyncio.gather(
            *[broker.publish(message, exchange="", routing_key=queue) for message in messages], return_exceptions=True
        )

        refused = [outcome for outcome in outcomes if outcome is not None]
        arrived = await broker.stats(queue)
    assert [type(outcome) for outcome in refused] == [TooLarge]
    assert f"limit={LIMIT_BYTES}" in str(refused[0])
    assert arrived is not None and arrived.messages >= 19
