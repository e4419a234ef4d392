"""Submits with a delay or an instant, by a client: what is asked of the control plane, and what comes of it in time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from coditect import Agent, Options
from coditect.errors import InputError, TaskCanceled
from coditect.testing import TestFleet
from tests.unit.client.scene import CAPABILITY, Scene


def clerk(seen: list[tuple[int, float]]) -> Agent:
    agent = Agent("clerk")

    @agent.capability("note.down")
    async def note(number: int) -> int:
        seen.append((number, asyncio.get_running_loop().time()))
        return number * 2

    return agent


async def test_a_task_runs_when_its_delay_is_over_and_its_value_comes_by_the_handle() -> None:
    seen: list[tuple[int, float]] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        began = asyncio.get_running_loop().time()
        handle = await fleet.client.submit("note.down", 1, delay="5m")
        later = await fleet.client.submit("note.down", 2, at=datetime(2026, 1, 1, 0, 10, tzinfo=UTC))
        row = await handle.row()
        found = await fleet.client.tasks.get(handle.task_id).result(timeout="10m"), await later.result(timeout="20m")

    (first, first_at), (second, second_at) = seen
    assert (first, second, found, row.state) == (1, 2, (2, 4), "waiting")
    assert 300 <= first_at - began < 302
    assert 599 < second_at - began < 602  # virtual time begins with the year


async def test_a_delayed_task_that_is_canceled_never_runs() -> None:
    seen: list[tuple[int, float]] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        handle = await fleet.client.submit("note.down", 1, delay="5m")
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(timeout="1m")
        await asyncio.sleep(600)

    assert seen == []


async def test_many_tasks_have_one_delay() -> None:
    seen: list[tuple[int, float]] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        began = asyncio.get_running_loop().time()
        handles = [handle async for handle in fleet.client.submit_many("note.down", [1, 2, 3], delay="1m")]
        values = [await handle.result(timeout="5m") for handle in handles]

    assert values == [2, 4, 6]
    assert all(at - began >= 60 for _, at in seen)


async def test_the_control_plane_is_asked_for_the_delay_and_a_deadline_counts_from_its_end(scene: Scene) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    await scene.client.submit(CAPABILITY, delay="5m", deadline="1h")
    await scene.client.submit(CAPABILITY, at=now + timedelta(hours=1), deadline=now + timedelta(hours=3))

    asked = [body["nodes"]["task"] for _, body in scene.plane.asked]
    assert [(node["delay"], node["deadline"]) for node in asked] == [
        ("5m", "1h"),
        ((now + timedelta(hours=1)).isoformat(), "2h"),
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"delay": 0}, "A delay is more than nothing and at most ten years"),
        ({"delay": "4000d"}, "A delay is more than nothing and at most ten years"),
        ({"delay": "soon"}, "A duration needs a number and a unit"),
        ({"at": datetime(2030, 1, 1)}, "The instant has no time zone"),
        ({"at": "2030-01-01T00:00:00Z"}, "This is no instant"),
        ({"at": datetime(2001, 1, 1, tzinfo=UTC)}, "The instant has passed already, or is too far away"),
        ({"at": datetime(2901, 1, 1, tzinfo=UTC)}, "The instant has passed already, or is too far away"),
        ({"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": "5m"}, "A task has a delay or an instant, not both"),
        ({"delay": "5m", "headers": {"x-tenant": "blue"}}, "A durable task has no headers"),
    ],
)
async def test_wrong_delays_are_refused_and_nothing_is_sent(
    scene: Scene, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        await scene.client.submit(CAPABILITY, **options)

    assert scene.plane.asked == []


async def test_a_deadline_before_the_end_of_the_delay_is_refused(scene: Scene) -> None:
    now = datetime.now(UTC).replace(microsecond=0)

    with pytest.raises(InputError, match="The deadline has passed already"):
        await scene.client.submit(CAPABILITY, delay="2h", deadline=now + timedelta(hours=1))


@pytest.mark.parametrize("options", [Options(delay="5m"), Options(at=datetime(2030, 1, 1, tzinfo=UTC))])
def test_a_delayed_task_is_durable(options: Options) -> None:
    assert options.kept
