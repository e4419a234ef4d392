"""The live feed over a broker that is killed: its streams go on, with a gap where events may be missing."""

from __future__ import annotations

import asyncio
import json
from itertools import groupby
from uuid import uuid4

import pytest

from coditect.aio.clock import SystemClock
from coditect.api.live import LiveFeed
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology
from coditect.messaging.event_publisher import Events
from coditect.messaging.event_stream import EventFilter
from tests.faults.node import Node
from tests.support import eventually

pytestmark = pytest.mark.servers


async def test_killed_broker_is_a_gap_and_events_are_heard_again(node: Node) -> None:
    seen: list[str] = []
    async with (
        AmqpBroker(node.url, name="live") as broker,
        AmqpBroker(node.url, name="publisher") as other,
    ):
        await broker.declare(base_topology())
        await node.write_to_disk()
        events = Events(other, SystemClock(), source="/agents/a-1")
        async with (
            LiveFeed(broker, name=uuid4().hex[:8], settle_seconds=600) as feed,
            feed.stream(EventFilter()) as stream,
        ):

            async def read() -> None:
                async for batch in stream.batches():
                    seen.extend(one.name or json.loads(one.body)["subject"] for one in batch if one.name != "ping")

            reading = asyncio.create_task(read())
            events.emit("task.completed", subject="before")
            await eventually(lambda: seen == ["before"])

            await node.kill()
            await node.start()
            await eventually(lambda: "gap" in seen, seconds=60)
            events.unmute()
            events.emit("task.completed", subject="after")
            await eventually(lambda: "after" in seen)
            reading.cancel()

    # an event whose ack the broker did not see may come again, behind the gap
    assert [one for one, _ in groupby(seen) if one != "before"] == ["gap", "after"]
    assert seen[:2] == ["before", "gap"]
