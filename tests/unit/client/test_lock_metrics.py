"""What the metrics say of the locks of one process: held, waited for, contended, given up."""

from __future__ import annotations

import pytest

from coditect.collaboration.locks import LockMetrics
from coditect.telemetry.metrics import Histogram, MemoryMetrics, Value
from tests.support import eventually


class Scene:
    def __init__(self) -> None:
        self.metrics = MemoryMetrics()
        self.locks = LockMetrics(self.metrics)

    def told(self, name: str) -> Value:
        return self.metrics.samples()[f"coditect_lock{name}", ()]

    def waits(self) -> tuple[int, float]:
        waited = self.told("_wait_seconds")
        assert isinstance(waited, Histogram)
        return sum(waited.counts), waited.total


async def test_free_lock_is_held_without_a_wait_or_a_contention() -> None:
    scene = Scene()

    scene.locks.answered("one", "held")

    assert (scene.told("s_active"), scene.told("s_waiting"), scene.told("_contentions_total")) == (1, 0, 0)
    assert scene.waits() == (1, 0.0)


async def test_wait_lasts_until_the_grant_and_the_lock_until_its_release() -> None:
    scene = Scene()
    scene.locks.answered("one", "waiting")
    await eventually(lambda: scene.told("_longest_wait_seconds"))
    assert (scene.told("s_active"), scene.told("s_waiting"), scene.told("_contentions_total")) == (0, 1, 1)

    scene.locks.granted("one")
    scene.locks.granted("one")

    assert (scene.told("s_active"), scene.told("s_waiting"), scene.told("_longest_wait_seconds")) == (1, 0, 0)
    assert scene.waits()[0] == 1
    assert scene.waits()[1] > 0

    scene.locks.ended("one")
    scene.locks.ended("one")

    assert scene.told("s_active") == 0


async def test_wait_under_another_ticket_goes_on() -> None:
    scene = Scene()
    scene.locks.answered("late", "waiting")
    await eventually(lambda: scene.told("_longest_wait_seconds"))
    longest = scene.told("_longest_wait_seconds")
    assert isinstance(longest, float)

    scene.locks.again("two", "late")
    scene.locks.ended("late")
    scene.locks.answered("two", "held")

    assert scene.waits()[1] >= longest


@pytest.mark.parametrize("state", ["taken", "deadlock"])
async def test_refused_lock_is_a_contention_and_no_wait(state: str) -> None:
    scene = Scene()

    scene.locks.answered("one", state)
    scene.locks.timed_out()

    assert (scene.told("s_waiting"), scene.told("_contentions_total"), scene.told("_timeouts_total")) == (0, 1, 1)
