"""What differs between RabbitMQ 3.10 and 4.0 when it hurts: rows of the table in docs/topology.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiormq.exceptions import AMQPError

from tests.faults.node import Node, private_node
from tests.support import eventually
from tests.versions import NEW, OLD, Wire, wire_to

pytestmark = [pytest.mark.servers, pytest.mark.proof]
NO_ANSWER_SECONDS = 2.0


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Node]:
    """A broker of this test alone, which it may leave wedged."""
    with private_node(tmp_path) as running:
        yield running


@pytest.fixture
async def wire(own_node: Node) -> AsyncIterator[Wire]:
    async with wire_to(own_node.url) as connected:
        yield connected
        connected.declared.clear()  # the node goes; a wedged queue would not answer


async def test_history_that_is_no_list_of_tables_stops_dead_lettering_on_the_node(wire: Wire) -> None:
    target = await wire.queue("target", delivery_limit=10)
    timers = [
        await wire.queue(
            short,
            delivery_limit=10,
            message_ttl=50,
            overflow="reject-publish",
            dead_letter_strategy="at-least-once",
            dead_letter_exchange="",
            dead_letter_routing_key=target,
        )
        for short in ("poisoned", "neighbour")
    ]

    await wire.put(timers[0], headers={"x-death": ["no table"]})
    await eventually(lambda: _leaves(wire, timers[0]))
    await wire.put(timers[1])
    await eventually(lambda: _leaves(wire, timers[1]))

    arrive = eventually(lambda: _holds(wire, target, 2), seconds=3)
    if wire.expected({OLD: False, NEW: True}):
        await arrive
    else:
        with pytest.raises(AssertionError):
            await arrive
        assert await _holds(wire, target, 0)


@pytest.mark.endurance
async def test_quorum_queue_that_was_declared_just_before_a_kill_never_answers(own_node: Node, wire: Wire) -> None:
    old = await wire.queue("old", delivery_limit=10)
    await own_node.write_to_disk()
    new = await wire.queue("new", delivery_limit=10)
    await wire.put(new)

    await own_node.kill()
    await own_node.start()

    answering = {queue: await _answers(own_node, queue) for queue in (old, new)}
    assert answering == wire.expected({OLD: {old: True, new: False}, NEW: {old: True, new: False}})


async def _leaves(wire: Wire, queue: str) -> bool:
    return await _holds(wire, queue, 0)


async def _holds(wire: Wire, queue: str, messages: int) -> bool:
    return (await wire.channel.queue_declare(queue, passive=True)).message_count == messages


async def _answers(node: Node, queue: str) -> bool:
    """Whether the queue confirms a message."""
    async with wire_to(node.url) as again:
        try:
            await asyncio.wait_for(again.put(queue), NO_ANSWER_SECONDS)
        except (TimeoutError, AMQPError):
            return False
        return True
