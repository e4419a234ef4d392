"""The live feed over the broker's twin: one subscription for all streams, and a gap wherever events may be missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coditect.api import live as feeds
from coditect.api.live import LiveFeed, LiveFrame, LiveStream, LiveWindow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import Binding, Queue, QueueType, Topology, base_topology
from coditect.errors import Overloaded, Retryable
from coditect.messaging.event_stream import EventFilter
from coditect.model.message import Event, Message
from coditect.wire import control_messages, routing
from coditect.wire.events import event_message
from tests.support import eventually

ALL = EventFilter()


@asynccontextmanager
async def fed(
    server: MemoryServer, *, idle_seconds: float = 60.0, settle_seconds: float = 60.0
) -> AsyncIterator[tuple[LiveFeed, MemoryBroker]]:
    async with MemoryBroker(server) as broker:
        await broker.declare(base_topology())
        feed = LiveFeed(
            broker, name="api", window=LiveWindow("e"), idle_seconds=idle_seconds, settle_seconds=settle_seconds
        )
        async with feed:
            yield feed, broker


async def publish(broker: MemoryBroker, number: int, publisher: str = "p") -> None:
    event = Event("task.completed", "/agents/a-1", f"{publisher}-{number}", 1_000, f"t{number}")
    await broker.publish(event_message(event), exchange=routing.EVENTS, routing_key=event.type)


class Reader:
    """The frames that a stream has given so far, without pings."""

    def __init__(self, stream: LiveStream) -> None:
        self.frames: list[LiveFrame] = []
        self._stream = stream

    async def run(self) -> None:
        async for batch in self._stream.batches():
            self.frames += [frame for frame in batch if frame.name != "ping"]

    def seen(self) -> list[str]:
        return [frame.name or json.loads(frame.body)["subject"] for frame in self.frames]


@asynccontextmanager
async def reading(feed: LiveFeed, selection: EventFilter = ALL, last_id: str = "") -> AsyncIterator[Reader]:
    async with feed.stream(selection, last_id) as stream:
        reader = Reader(stream)
        task = asyncio.create_task(reader.run())
        try:
            yield reader
        finally:
            task.cancel()


async def test_many_streams_share_one_subscription() -> None:
    server = MemoryServer()
    async with fed(server) as (feed, broker), reading(feed) as one, reading(feed) as other:
        await publish(broker, 1)
        await eventually(lambda: one.seen() == other.seen() == ["t1"])
        stats = await broker.stats(feed.queue)

    assert stats is not None
    assert stats.consumers == 1


async def test_reader_that_comes_back_misses_nothing() -> None:
    async with fed(MemoryServer()) as (feed, broker):
        async with reading(feed) as reader:
            await publish(broker, 1)
            await eventually(lambda: reader.seen() == ["t1"])
        await publish(broker, 2)

        async with reading(feed, last_id=reader.frames[-1].id) as again:
            await publish(broker, 3)
            await eventually(lambda: again.seen() == ["t2", "t3"])


async def test_no_subscription_is_left_without_streams_and_the_next_stream_learns_of_the_gap() -> None:
    server = MemoryServer()
    async with fed(server, idle_seconds=0.01) as (feed, broker):
        async with reading(feed) as reader:
            await publish(broker, 1)
            await eventually(lambda: reader.seen() == ["t1"])
        await eventually(lambda: server.find(feed.queue) is None)

        async with reading(feed, last_id=reader.frames[-1].id) as again:
            await publish(broker, 7)
            await eventually(lambda: again.seen() == ["gap", "t7"])


async def test_lost_subscription_is_a_gap_for_open_streams() -> None:
    server = MemoryServer()
    async with fed(server) as (feed, broker), reading(feed) as reader:
        await publish(broker, 1)
        await eventually(lambda: reader.seen() == ["t1"])

        broker.drop()

        await eventually(lambda: reader.seen() == ["t1", "gap"])
        await publish(broker, 9)
        await eventually(lambda: reader.seen() == ["t1", "gap", "t9"])


async def test_event_that_the_broker_dropped_is_a_gap() -> None:
    async with fed(MemoryServer()) as (feed, broker), reading(feed) as reader:
        for number in (1, 2, 4):
            await publish(broker, number)

        await eventually(lambda: reader.seen() == ["t1", "t2", "gap", "t4"])


async def test_first_seconds_of_a_subscription_end_with_a_gap() -> None:
    async with fed(MemoryServer(), settle_seconds=0.05) as (feed, _), reading(feed) as reader:
        await eventually(lambda: reader.seen() == ["gap"])


async def test_feed_announces_itself_to_muted_publishers_whenever_it_begins() -> None:
    announced: list[Message] = []

    def heard(delivery: Delivery) -> None:
        announced.append(delivery.message)
        delivery.ack()

    server = MemoryServer()
    async with fed(server) as (feed, broker), MemoryBroker(server) as other:
        await other.declare(Topology((), (Queue("tap", QueueType.CLASSIC),), (Binding(routing.BROADCAST, "tap"),)))
        await other.consume("tap", heard, prefetch=1)
        async with reading(feed) as reader:
            await eventually(lambda: [one.type for one in announced] == [control_messages.LISTEN])

            broker.drop()
            await eventually(lambda: reader.seen() == ["gap"])
            await eventually(lambda: [one.type for one in announced] == [control_messages.LISTEN] * 2)


async def test_end_of_the_server_ends_the_streams_and_refuses_new_ones() -> None:
    async with fed(MemoryServer()) as (feed, _), reading(feed) as reader:
        feed.end("the server stops")

        await eventually(lambda: reader.seen() == ["end"])
        with pytest.raises(Overloaded) as refused:
            async with feed.stream(ALL):
                pass
    assert refused.value.facts["reason"] == "the server stops"


async def test_more_streams_than_allowed_are_refused() -> None:
    async with MemoryBroker(MemoryServer()) as broker:
        await broker.declare(base_topology())
        async with LiveFeed(broker, name="api", most_streams=1) as feed, feed.stream(ALL):
            with pytest.raises(Overloaded) as refused:
                async with feed.stream(ALL):
                    pass
    assert refused.value.facts["retry_after"] == 5


async def test_stream_without_a_broker_is_refused_and_the_next_one_served() -> None:
    server = MemoryServer()
    async with fed(server) as (feed, broker):
        server.block()
        with pytest.raises(Retryable):
            async with feed.stream(ALL):
                pass
        server.unblock()
        async with reading(feed) as reader:
            await publish(broker, 1)
            await eventually(lambda: reader.seen() == ["t1"])


async def test_streams_are_woken_once_for_many_events(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[LiveStream] = []

    def wake(stream: LiveStream) -> None:
        woken.append(stream)

    monkeypatch.setattr(LiveStream, "wake", wake)
    monkeypatch.setattr(feeds, "GATHER_SECONDS", 0.05)
    async with fed(MemoryServer()) as (feed, _), feed.stream(ALL) as stream:
        for number in range(500):
            feed.take(Event("task.completed", "/agents/a-1", f"p-{number}", 1_000))
        await eventually(lambda: woken == [stream])
