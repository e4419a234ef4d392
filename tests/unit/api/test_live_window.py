"""Live events, without a broker: the window, the filter, the numbers of publishers and one stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from coditect.api.live import Continuity, LiveFrame, LiveStream, LiveWindow
from coditect.messaging.event_stream import EventFilter
from coditect.model.message import Event


def event(number: int, type_: str = "task.completed", **data: object) -> Event:
    return Event(type_, "/agents/a-1", f"p-{number}", 1_000, f"t{number}", data)


def filled(numbers: int, **bounds: int) -> LiveWindow:
    window = LiveWindow("e", **bounds)
    for number in range(1, numbers + 1):
        window.add(event(number))
    return window


async def read(stream: LiveStream, until: str = "end") -> list[LiveFrame]:
    """The frames of a stream up to one of the given name."""
    frames: list[LiveFrame] = []
    async with asyncio.timeout(10):
        async for batch in stream.batches():
            frames += batch
            if any(frame.name == until for frame in batch):
                break
    return frames


def ids(frames: list[LiveFrame]) -> list[str]:
    return [frame.id for frame in frames]


def test_window_keeps_the_latest_by_number() -> None:
    window = filled(25, most_frames=10)

    assert ids(window.after(15, 100)) == [f"e-{number}" for number in range(16, 26)]
    assert window.holds_after(15)
    assert not window.holds_after(14)


def test_window_keeps_the_latest_by_bytes_and_at_least_one() -> None:
    window = LiveWindow("e", most_bytes=1_000)
    for number in range(5):
        window.add(event(number, note="x" * 400))
    assert window.newest == 5
    assert not window.holds_after(2)
    assert window.holds_after(4)

    window.add(event(6, note="x" * 5_000))

    assert ids(window.after(5, 9)) == ["e-6"]


@pytest.mark.parametrize(
    ("last_id", "number", "missing"),
    [
        ("", 25, False),
        ("e-25", 25, False),
        ("e-20", 20, False),
        ("e-15", 15, False),
        ("e-14", 25, True),
        ("e-26", 25, True),
        ("f-20", 25, True),
        ("e-", 25, True),
        ("e--3", 25, True),
        ("e-\u0663", 25, True),
        ("e-" + "9" * 400, 25, True),
        ("nonsense", 25, True),
    ],
)
def test_reader_goes_on_after_its_last_event_or_learns_that_it_cannot(last_id: str, number: int, missing: bool) -> None:
    position, reason = filled(25, most_frames=10).resume(last_id)

    assert (position, bool(reason)) == (number, missing)


@pytest.mark.parametrize(
    ("chosen", "type_", "subject", "data", "taken"),
    [
        ({}, "task.completed", "t", {}, True),
        ({"kind": ["task"]}, "task.completed", "t", {}, True),
        ({"kind": ["task.*"]}, "task.completed", "t", {}, True),
        ({"kind": ["task.completed"]}, "task.completed", "t", {}, True),
        ({"kind": ["task.comp"]}, "task.completed", "t", {}, False),
        ({"kind": ["#"]}, "node.ready", "t", {}, True),
        ({"kind": ["agent", "task"]}, "node.ready", "t", {}, False),
        ({"task": ["t"]}, "task.completed", "t", {}, True),
        ({"task": ["w:build"]}, "node.started", "w", {"node": "build"}, True),
        ({"task": ["w:build"]}, "node.started", "w", {"node": "test"}, False),
        ({"workflow": ["w"]}, "workflow.completed", "w", {}, True),
        ({"workflow": ["w"]}, "task.started", "w:build", {}, True),
        ({"workflow": ["w"]}, "task.started", "w2:build", {}, False),
        ({"capability": ["text.count"]}, "task.started", "t", {"capability": "text.count"}, True),
        ({"capability": ["text.count"]}, "task.started", "t", {}, False),
        ({"agent": ["a-1"]}, "task.started", "t", {"agent": "a-1"}, True),
        ({"agent": ["a-1"]}, "agent.offline", "a-1", {}, True),
        ({"agent": ["t"]}, "task.started", "t", {"agent": "a-2"}, False),
        ({"agent": [""]}, "workflow.accepted", "w", {}, False),
        ({"kind": ["task"], "agent": ["a-9"]}, "task.started", "t", {"agent": "a-1"}, False),
    ],
)
def test_filter_takes(
    chosen: dict[str, list[str]], type_: str, subject: str, data: dict[str, object], taken: bool
) -> None:
    happened = Event(type_, "/dispatchers/d-1", "p-1", 0, subject, data)

    assert EventFilter.of(**chosen).takes(happened) is taken


def test_filter_of_an_agent_takes_what_the_agent_published() -> None:
    assert EventFilter.of(agent=["a-1"]).takes(event(1))


def test_continuity_sees_a_number_that_was_left_out() -> None:
    seen = Continuity()

    assert [seen.follows(identity) for identity in ("p-7", "q-1", "p-8", "q-2", "p-8")] == [True] * 5
    assert not seen.follows("p-10")
    assert seen.follows("p-9"), "an event that comes late was told of already"
    assert seen.follows("p-11")
    assert [seen.follows(identity) for identity in ("some-uuid", "", "7", "-7", "p-\u0661", f"p-{'9' * 5_000}")] == [
        True
    ] * 6


def test_continuity_forgets_the_publisher_that_was_silent_longest() -> None:
    seen = Continuity(most=2)
    for identity in ("a-1", "b-1", "a-2", "c-1"):
        seen.follows(identity)

    assert seen.follows("b-9")
    assert not seen.follows("c-3")


async def test_stream_replays_what_follows_the_last_id_and_goes_on() -> None:
    window = filled(5)
    stream = LiveStream(window, EventFilter(), "e-3")
    reading = asyncio.create_task(read(stream))
    await asyncio.sleep(0)
    window.add(event(6))
    stream.end("over")

    frames = await reading

    assert [(frame.id, frame.name) for frame in frames] == [
        ("e-3", "ping"),
        ("e-4", ""),
        ("e-5", ""),
        ("e-6", ""),
        ("e-6", "end"),
    ]
    assert json.loads(frames[1].body)["id"] == "p-4"
    assert json.loads(frames[-1].body) == {"reason": "over"}


async def test_stream_of_an_unknown_id_begins_with_a_gap_and_then_has_all_that_comes() -> None:
    window = filled(5)
    stream = LiveStream(window, EventFilter(), "other-3")
    window.add(event(6))

    frames = await read_some(stream, 3)

    assert [(frame.id, frame.name) for frame in frames] == [("e-5", "ping"), ("e-5", "gap"), ("e-6", "")]
    assert json.loads(frames[1].body)["reason"] == "the last event is not of this process"
    assert "read the state again" in json.loads(frames[1].body)["advice"]


async def test_gap_reaches_every_stream_whatever_its_filter() -> None:
    window = filled(1)
    stream = LiveStream(window, EventFilter.of(kind=["agent"]), "e-0")
    window.add_gap("lost")
    window.add(event(3, "agent.online"))

    frames = await read_some(stream, 3)

    assert [frame.name for frame in frames] == ["ping", "gap", ""]


async def test_quiet_stream_tells_how_far_it_has_come() -> None:
    window = filled(1)
    stream = LiveStream(window, EventFilter.of(kind=["agent"]), ping_seconds=0.01)
    frames = stream.batches()
    assert ids(await anext(frames)) == ["e-1"]

    window.add(event(2))
    stream.wake()

    assert [(frame.id, frame.name) for frame in await anext(frames)] == [("e-2", "ping")]


async def test_reader_that_the_window_has_passed_is_cut_and_told() -> None:
    window = filled(3, most_frames=10)
    stream = LiveStream(window, EventFilter())
    frames = stream.batches()
    await anext(frames)
    for number in range(4, 15):
        window.add(event(number))

    rest = [frame async for batch in frames for frame in batch]

    assert [(frame.id, frame.name) for frame in rest] == [("e-3", "end")]
    assert "too slow" in json.loads(rest[0].body)["reason"]


async def read_some(stream: LiveStream, number: int) -> list[LiveFrame]:
    frames: list[LiveFrame] = []
    batches: AsyncIterator[list[LiveFrame]] = stream.batches()
    async with asyncio.timeout(10):
        while len(frames) < number:
            frames += await anext(batches)
    return frames
