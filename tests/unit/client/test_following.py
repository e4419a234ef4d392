"""Who follows one task hears of that task alone, and costs the others nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from coditect import Agent, Context, Workflow
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import base_topology
from coditect.errors import Retryable, Unroutable
from coditect.messaging.event_publisher import Events
from coditect.messaging.event_stream import EventStream, EventStreams
from coditect.model.message import Event, Message
from coditect.testing import TestFleet
from coditect.wire import control_messages, routing
from coditect.wire.events import event_message, read_event
from tests.support import eventually

SUBJECTS = some.one_of(some.sampled_from(["a", "b.c", "w:task", "#", "*", "x" * 250, "ü" * 120, ""]), some.text())


def stepping() -> Agent:
    agent = Agent("stepping", slots=8)

    @agent.capability("step.by")
    async def step(number: int, ctx: Context) -> int:
        for share in (0.3, 0.6):
            await asyncio.sleep(1)
            await ctx.progress(share)
        await asyncio.sleep(1)
        return number

    return agent


async def test_listener_that_cannot_announce_itself_leaves_no_queue_behind() -> None:
    async with TestFleet(agents=[stepping()]) as fleet:
        fleet.server.block()

        with pytest.raises(Retryable):
            async with fleet.client.events("task.*"):
                pass

        assert fleet.server.find("events.client-test.1") is None


async def test_followers_of_one_task_are_sent_what_is_about_it_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delivered: list[str] = []
    take = EventStream._take

    def counted(stream: EventStream, delivery: Delivery) -> None:
        delivered.append(read_event(delivery.message, 0).subject)
        take(stream, delivery)

    monkeypatch.setattr(EventStream, "_take", counted)
    async with TestFleet(agents=[stepping()]) as fleet:
        noise = [await fleet.client.submit("step.by", number) for number in range(20)]
        handle = await fleet.client.submit("step.by", 7)
        types = [event.type async for event in handle.events()]
        for other in noise:
            await other.result(timeout="1h")

    assert types[-3:] == ["task.progress", "task.progress", "task.completed"]
    assert set(delivered) == {handle.task_id}


async def test_a_follower_hears_from_an_agent_that_has_muted_what_nobody_hears() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker, MemoryBroker(server) as other:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/agents/a")
        async with EventStreams(other, name="client").stream("task.*", subjects=["mine"]) as stream:
            events.unmute(["mine"])
            events.emit("task.progress", subject="another's")
            await eventually(lambda: not events.heard("task.progress", "another's"))

            events.emit("task.progress", subject="another's")
            events.emit("task.progress", subject="mine")
            events.emit("task.completed", subject="mine")
            heard = [await asyncio.wait_for(anext(stream), 60) for _ in range(2)]

        assert {event.subject for event in heard} == {"mine"}
        await eventually(lambda: not events.heard("task.progress", "mine"))  # its story is over


class Counting(MemoryBroker):
    """Counts what is published."""

    published = 0

    async def publish(self, message: Message, **options: Any) -> None:
        self.published += 1
        await super().publish(message, **options)


async def test_type_without_a_listener_costs_one_event_every_few_seconds_until_there_is_one() -> None:
    async with TestFleet() as clock, Counting(MemoryServer()) as broker:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/agents/a")
        events.emit("task.progress")
        await clock.advance("1s")
        for _ in range(200):
            for _ in range(10):
                events.emit("task.progress")
            await clock.advance("100ms")

        assert 4 <= broker.published <= 6

        events.unmute(["followed"])
        await clock.advance("6s")
        events.emit("task.progress", subject="followed")
        assert events.heard("task.progress", "another"), "an event that is sent anyhow finds nothing out"
        await clock.advance("1s")

        async with EventStreams(broker, name="client").stream("task.*") as stream:
            await clock.advance("5s")
            events.emit("task.progress", subject="heard")
            await clock.advance("1s")
            events.emit("task.progress", subject="the next one")
            heard = [await asyncio.wait_for(anext(stream), 60) for _ in range(2)]

    assert [event.subject for event in heard] == ["heard", "the next one"]


async def test_who_went_without_a_word_is_not_told_for_ever() -> None:
    async with MemoryBroker(MemoryServer()) as broker:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/agents/a")
        events.unmute(["gone"])
        assert events.heard("task.progress", "gone")

        events.emit("task.progress", subject="gone")

        await eventually(lambda: not events.heard("task.progress", "gone"))


async def test_events_of_a_run_are_its_own() -> None:
    flow = Workflow("one")
    flow.task("step.by", 1, name="only")
    async with TestFleet(agents=[stepping()]) as fleet:
        others = [await fleet.start(flow) for _ in range(3)]
        run = await fleet.start(flow)
        heard = [event async for event in run.events()]
        for other in others:
            await other.wait(timeout="1h")

    assert {event.subject for event in heard} == {run.id}
    assert heard[-1].type == "workflow.completed"


@given(subjects=some.lists(SUBJECTS, min_size=1, max_size=4), followed=some.data())
def test_whatever_a_subject_is_its_follower_hears_it_and_nothing_else(
    subjects: list[str], followed: some.DataObject
) -> None:
    mine = followed.draw(some.sampled_from(subjects))
    asyncio.run(asyncio.wait_for(_follow(mine, subjects), 60))


async def _follow(mine: str, subjects: list[str]) -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker, MemoryBroker(server) as other:
        await broker.declare(base_topology())
        async with EventStreams(other, name="client").stream("task.*", subjects=[mine]) as stream:
            for subject in subjects:
                await _emit(broker, subject)
            await _emit(broker, mine, "task.last")
            heard: list[Event] = []
            while not heard or heard[-1].type != "task.last":
                heard.append(await anext(stream))

    assert [event.subject for event in heard] == [mine] * (subjects.count(mine) + 1)


async def _emit(broker: MemoryBroker, subject: str, kind: str = "task.told") -> None:
    with suppress(Unroutable):
        event = Event(kind, "/test", "id", 0, subject)
        await broker.publish(event_message(event), exchange=routing.EVENTS, routing_key=kind, timeout_seconds=5)


def test_a_listen_message_of_a_stranger_names_texts_only_and_not_too_many() -> None:
    assert [control_messages.listened(content) for content in (None, {"subjects": "x"}, [1])] == [(), (), ()]
    assert control_messages.listened({"subjects": ["a", 5, None, "b"]}) == ("a", "b")
    assert len(control_messages.listened({"subjects": ["a"] * 10_000})) == control_messages.MOST_SUBJECTS
