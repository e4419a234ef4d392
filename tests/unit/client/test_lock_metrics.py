"""What the metrics say of the locks of one process: held, waited for, contended, given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from coditect.broker.memory import MemoryBroker
from coditect.client.client import Client
from coditect.errors import Deadlock, LockTaken
from coditect.telemetry.metrics import Histogram, MemoryMetrics, Value
from coditect.testing import TestFleet
from coditect.wire.control import Verb


class Scene:
    def __init__(self, fleet: TestFleet, client: Client, metrics: MemoryMetrics) -> None:
        self.fleet = fleet
        self.client = client
        self._metrics = metrics

    def value(self, name: str) -> Value:
        return self._metrics.samples()[f"coditect_lock{name}", ()]

    def waits(self) -> tuple[int, float]:
        waited = self.value("_wait_seconds")
        assert isinstance(waited, Histogram)
        return sum(waited.counts), waited.total

    def answers(self, *states: dict[str, Any]) -> None:
        """Answer the requests about locks by these states, and the last one for ever."""
        left = list(states)

        class Scripted:
            async def ask(self, verb: Verb, body: dict[str, Any], **_: object) -> dict[str, Any]:
                return left.pop(0) if len(left) > 1 else left[0]

        self.client._lock_port._control = cast("Any", Scripted())


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    metrics = MemoryMetrics()
    async with (
        TestFleet() as fleet,
        MemoryBroker(fleet.server, name="locker") as broker,
        Client(broker, metrics=metrics) as client,
    ):
        yield Scene(fleet, client, metrics)


async def test_free_lock_is_held_without_a_wait_or_a_contention(scene: Scene) -> None:
    async with scene.client.lock("x"):
        assert (scene.value("s_active"), scene.value("s_waiting"), scene.value("_contentions_total")) == (1, 0, 0)

    assert (scene.waits(), scene.value("s_active")) == ((1, 0.0), 0)


async def test_wait_lasts_until_the_grant_and_the_lock_until_its_release(scene: Scene) -> None:
    async def hold() -> None:
        async with scene.client.lock("x"):
            await asyncio.sleep(10)

    async with scene.fleet.client.lock("x"):
        holding = asyncio.create_task(hold())
        await scene.fleet.advance("2s")
        assert (scene.value("s_active"), scene.value("s_waiting"), scene.value("_contentions_total")) == (0, 1, 1)
        assert scene.value("_longest_wait_seconds") == pytest.approx(2, abs=0.1)
    await scene.fleet.advance("1s")

    assert (scene.value("s_active"), scene.value("s_waiting"), scene.value("_longest_wait_seconds")) == (1, 0, 0)
    count, waited = scene.waits()
    assert (count, round(waited)) == (1, 2)

    await holding

    assert scene.value("s_active") == 0


async def test_wait_under_another_ticket_goes_on(scene: Scene) -> None:
    held = {"state": "held", "fence": 7}
    scene.answers({"state": "waiting"}, {"state": "gone"}, held)

    async with scene.client.lock("x", ttl="9s"):
        count, waited = scene.waits()

    assert (count, round(waited)) == (1, 3)


@pytest.mark.parametrize("state", [{"state": "taken"}, {"state": "deadlock", "cycle": []}])
async def test_refused_lock_is_a_contention_and_no_wait(scene: Scene, state: dict[str, Any]) -> None:
    scene.answers(state)

    with pytest.raises((LockTaken, Deadlock)):
        await scene.client.lock("x").__aenter__()

    assert (scene.value("s_waiting"), scene.value("_contentions_total"), scene.value("_timeouts_total")) == (0, 1, 0)


async def test_wait_that_is_given_up_is_a_timeout(scene: Scene) -> None:
    scene.answers({"state": "waiting"})

    with pytest.raises(LockTaken):
        await scene.client.lock("x", timeout="1s").__aenter__()

    assert (scene.value("s_waiting"), scene.value("_contentions_total"), scene.value("_timeouts_total")) == (0, 1, 1)
