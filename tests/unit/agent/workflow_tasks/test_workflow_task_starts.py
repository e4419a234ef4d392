"""What the owner of a task hears while it runs: its start, its progress, that it is alive. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from coditect.agent.owners import LONG_SECONDS
from coditect.broker.memory import MemoryBroker
from coditect.model.message import Message
from coditect.model.result import NOT_BEGUN, Status
from coditect.model.task import Limits
from coditect.testing import TestFleet
from coditect.testing.fleet import START
from coditect.testing.virtual_time import SeededClock
from coditect.wire import routing
from coditect.wire.json import loads
from coditect.wire.workflow_tasks import Claim, Verdict
from tests.owner import ScriptedOwner, granting, saying
from tests.unit.agent.workflow_tasks.works import Works, reported

QUEUE = "tasks.work.do.p1"
Managed = tuple[TestFleet, ScriptedOwner, Works]
SHARD = 9_000
"""One that the fleet's own dispatcher did not have."""


@asynccontextmanager
async def managed_fleet(slots: int = 4) -> AsyncIterator[Managed]:
    """One agent in virtual time, and the owner of its tasks instead of a dispatcher."""
    works = Works(slots=slots, timeout="1h")
    async with TestFleet(agents=[works.agent]) as fleet, MemoryBroker(fleet.server, name="owner") as broker:
        fleet.kill("dispatcher")
        epoch_ms = round(START.timestamp() * 1000)
        clock = SeededClock(epoch_ms, lambda: fleet.elapsed_seconds, Random(1))
        owner = ScriptedOwner(broker, shard=SHARD, clock=clock)
        await owner.open()
        yield fleet, owner, works


def in_hand(fleet: TestFleet) -> int:
    """How many tasks somebody holds unacknowledged."""
    return fleet.server.queue(QUEUE).in_hand


def ready(fleet: TestFleet) -> int:
    """How many tasks wait in the queue."""
    return fleet.server.queue(QUEUE).stats.messages


async def test_start_is_told_of_what_runs_longer_than_a_moment() -> None:
    async with managed_fleet() as (fleet, owner, works):
        began_ms = owner.clock.now_ms()
        await owner.publish("work.do", "quick", node="quick")
        await owner.publish("work.do", "wait", node="slow", publication=2, fence=3, attempt=2)
        await owner.publish("work.do", "wait", node="slower", publication=4)
        await fleet.settled()
        assert owner.started == []

        await fleet.advance("1s")

        first, second = owner.started
        agent = fleet.agents[0].id
        assert (first.node, first.fence, first.publication, first.agent, first.attempt) == ("slow", 3, 2, agent, 2)
        assert (second.node, owner.reports) == ("slower", 1)
        assert first.at_ms - began_ms < 10
        works.gate.set()
        await fleet.advance("1s")
        assert (len(owner.results), len(owner.started)) == (3, 2)


async def test_claimed_start_is_not_told_again() -> None:
    async with managed_fleet() as (fleet, owner, works):
        owner.decide = granting()
        await owner.publish("work.do", "wait", age_ms=2_000)

        await fleet.advance("10s")

        assert (len(owner.claims), len(works.runs), owner.started) == (1, 1, [])


@asynccontextmanager
async def granted_late() -> AsyncIterator[Managed]:
    """The owner was away for a while, and lets both tasks run now; so they wait for one slot."""
    async with managed_fleet(slots=1) as (fleet, owner, works):
        for node in ("one", "other"):
            await owner.publish("work.do", "wait", node=node, age_ms=5_000, limits=Limits(timeout_ms=3_600_000))
        await fleet.advance("20s")
        owner.decide = granting()
        await fleet.advance("2m")
        assert (len(owner.claims) > 2, len(works.runs)) == (True, 1)
        yield fleet, owner, works


async def test_claimed_start_is_kept_alive_while_it_waits_for_a_slot_and_told_when_its_time_counts() -> None:
    async with granted_late() as (fleet, owner, works):
        owner.progress.clear()
        await fleet.advance("1m")
        assert sorted(one.node for one in owner.progress) == ["one"] * 3 + ["other"] * 3
        assert {one.fence for one in owner.progress} == {7}
        (first,) = owner.started

        works.gate.set()
        works.gate.clear()
        await fleet.advance("1s")

        second = owner.started[-1]
        assert {first.node, second.node} == {"one", "other"}
        assert (first.fence, second.fence, len(owner.started), len(owner.results)) == (7, 7, 2, 1)
        assert second.at_ms - first.at_ms > 60_000


async def test_long_task_and_one_that_waits_for_its_slot_are_acknowledged_and_reported_by_a_drain() -> None:
    async with granted_late() as (fleet, owner, works):
        await fleet.advance("11m")
        (running,) = {one.node for one in owner.started}
        (waiting,) = {"one", "other"} - {running}
        assert (running in ("one", "other"), in_hand(fleet), len(works.runs)) == (True, 0, 1)

        await fleet.drain("works")

        failures = {one.owner.node: failure for one in owner.results if (failure := one.outcome.failure)}
        told = {node: (failure.reason, failure.retryable) for node, failure in failures.items()}
        assert told == {running: ("interrupted", True), waiting: ("not_begun", True)}
        assert {one.owner.fence for one in owner.results} == {7}


async def test_task_that_waits_for_a_slot_since_it_was_granted_is_given_back_by_a_drain() -> None:
    async with granted_late() as (fleet, owner, works):
        (running,) = {one.node for one in owner.started}
        async with asyncio.TaskGroup() as group:
            group.create_task(fleet.drain("works"))
            back = await reported(owner)
            works.gate.set()

        assert (back.owner.node != running, back.owner.fence, back.outcome.failure) == (True, 7, NOT_BEGUN)
        assert (len(works.runs), [one.owner.node for one in owner.results[1:]]) == (1, [running])
        assert (ready(fleet), in_hand(fleet)) == (0, 0), "its owner publishes it anew"


@asynccontextmanager
async def drained_while_it_asks(asked_for: float) -> AsyncIterator[Managed]:
    """Its claim has had no answer for so many seconds when the agent begins to drain."""
    async with managed_fleet() as (fleet, owner, works):
        await owner.publish("work.do", 1, age_ms=2_000)
        await fleet.advance(asked_for)
        (agent,) = fleet.agents
        async with asyncio.TaskGroup() as group:
            group.create_task(fleet.drain("works"))
            await fleet.advance("500ms")
            assert (in_hand(fleet), agent.lives) == (1, True)
            yield fleet, owner, works


@pytest.mark.parametrize("asked_for", [0.1, 4.8, 10.2], ids=["with its slot", "time is over", "between two askings"])
async def test_what_is_granted_just_after_the_drain_began_is_given_back(asked_for: float) -> None:
    async with drained_while_it_asks(asked_for) as (fleet, owner, works):
        asked = Message(b"", correlation_id=owner.claim_ids[0], reply_to=routing.agent_replies(fleet.agents[0].id))
        await owner.answer(asked, Claim(Verdict.RUN, 7, 1))

    (back,) = owner.results
    assert (back.owner.fence, back.outcome.failure, works.runs) == (7, NOT_BEGUN, [])
    assert (ready(fleet), in_hand(fleet)) == (0, 0), "its owner publishes it anew"


@pytest.mark.parametrize("verdict", [Verdict.WAIT, None])
async def test_what_is_not_granted_just_after_the_drain_began_goes_back(verdict: Verdict | None) -> None:
    async with drained_while_it_asks(0.1) as (fleet, owner, works):
        if verdict is not None:
            asked = Message(b"", correlation_id=owner.claim_ids[0], reply_to=routing.agent_replies(fleet.agents[0].id))
            await owner.answer(asked, Claim(verdict))
            await fleet.settled()
        else:
            await fleet.advance("501ms")
        assert (ready(fleet), in_hand(fleet)) == (1, 0)

    assert (works.runs, owner.results, len(owner.claims)) == ([], [], 1)


async def test_start_is_told_again_of_what_was_granted_anew_when_its_time_counts() -> None:
    async with managed_fleet() as (fleet, owner, works):
        owner.decide = granting(fence=9)
        await owner.publish("work.do", "wait", fence=4, limits=Limits(timeout_ms=3_600_000))
        await fleet.advance("1s")

        await owner.publish("work.do", "wait", fence=4, limits=Limits(timeout_ms=3_600_000))
        await fleet.advance("1s")

        assert ([one.fence for one in owner.started], len(works.runs)) == ([4, 9], 1)


async def test_start_that_could_not_be_told_is_told_later() -> None:
    async with managed_fleet() as (fleet, owner, _):
        await owner.leave()
        await owner.publish("work.do", "wait")
        await fleet.advance("1s")
        assert owner.started == []

        await owner.open()
        await fleet.advance("10s")

        assert [one.node for one in owner.started] == ["work"]


async def test_task_that_runs_for_ten_minutes_is_told_acknowledged_and_kept_alive() -> None:
    async with managed_fleet() as (fleet, owner, works):
        await owner.publish("work.do", "wait", publication=8, fence=4)
        await fleet.advance(LONG_SECONDS - 1)
        assert (len(owner.started), in_hand(fleet)) == (1, 1)

        await fleet.advance("2s")

        first, second = owner.started
        assert second.at_ms - first.at_ms == pytest.approx(LONG_SECONDS * 1000, abs=100)
        assert (second.node, second.fence, second.publication) == ("work", 4, 8)
        assert in_hand(fleet) == 0
        await fleet.advance("10m")
        assert len(owner.progress) == pytest.approx(60, abs=1)
        assert {(one.node, one.fence, one.share) for one in owner.progress} == {("work", 4, 0.0)}
        works.gate.set()
        await fleet.advance("1s")
        assert [one.outcome.status for one in owner.results] == [Status.COMPLETED]
        many = len(owner.progress)
        await fleet.advance("5m")
        assert len(owner.progress) == many, "nobody runs any more"


async def test_long_task_keeps_its_delivery_until_that_is_confirmed() -> None:
    async with managed_fleet() as (fleet, owner, _):
        await owner.publish("work.do", "wait")
        await fleet.advance("1m")
        await owner.leave()

        await fleet.advance("10m")
        assert in_hand(fleet) == 1

        await owner.open()
        await fleet.advance("2m")
        assert in_hand(fleet) == 0


async def test_result_of_a_long_task_is_offered_until_somebody_takes_it() -> None:
    async with managed_fleet() as (fleet, owner, works):
        await owner.publish("work.do", "wait")
        await fleet.advance("11m")
        await owner.leave()
        works.gate.set()
        await fleet.advance("5m")

        await owner.open()
        await fleet.advance("2m")

        assert (owner.values, len(works.runs), fleet.agents[0].load.running) == (["wait"], 1, 0)


async def test_late_result_of_a_frozen_agent_carries_its_own_fence() -> None:
    async with managed_fleet() as (fleet, owner, works):
        owner.decide = granting(fence=5, attempt=2)
        await owner.publish("work.do", "wait", fence=4)
        await fleet.advance("1s")
        (frozen,) = fleet.pause("works")
        await fleet.add(works.agent)
        await fleet.advance("20s")
        works.gate.set()
        await fleet.advance("1s")
        assert [one.owner.fence for one in owner.results] == [5]

        fleet.resume(frozen.id)
        owner.decide = saying(Verdict.STALE)
        await fleet.advance("5s")

        assert [one.owner.fence for one in owner.results] == [5, 4], "which its owner refuses"


async def test_claim_that_nobody_answers_goes_back_before_the_broker_takes_it() -> None:
    async with managed_fleet() as (fleet, owner, works):
        await owner.publish("work.do", 1, age_ms=5_000)
        await fleet.advance("9m")
        asked = set(owner.claim_ids)
        assert (len(asked), in_hand(fleet), fleet.agents[0].load.suspended) == (1, 1, 1)

        await fleet.advance("6m")
        assert len(set(owner.claim_ids)) == 2, "it came again"

        owner.decide = granting()
        await fleet.advance("2m")
        assert (len(works.runs), in_hand(fleet)) == (1, 0)


async def test_progress_is_told_to_the_owner_the_last_of_a_second_only_and_repeated_by_heartbeats() -> None:
    async with managed_fleet() as (fleet, owner, _):
        await owner.publish("work.do", "tell", fence=3)

        await fleet.advance("1s")

        assert [(one.node, one.fence, one.share, one.message) for one in owner.progress] == [("work", 3, 1.0, "nearly")]
        told = [one.data["share"] for one in fleet.events if one.type == "task.progress"]
        assert told[-1] == 1.0, "and listeners hear of each"

        await fleet.advance("10m")
        assert len(owner.progress) > 1
        assert {(one.share, one.message) for one in owner.progress} == {(1.0, "nearly")}


async def test_progress_that_cannot_be_told_is_dropped() -> None:
    async with managed_fleet() as (fleet, owner, works):
        await owner.leave()
        await owner.publish("work.do", "tell")
        await fleet.advance("10s")

        await owner.open()
        works.gate.set()
        await fleet.advance("2m")

        assert (owner.progress, [loads(one.outcome.body) for one in owner.results]) == ([], ["tell"])


async def test_long_task_that_comes_again_is_told_and_let_go_again() -> None:
    async with managed_fleet() as (fleet, owner, works):
        owner.decide = granting(fence=9)
        await owner.publish("work.do", "wait", fence=4)
        await fleet.advance("11m")

        await owner.publish("work.do", "wait", fence=4)
        await fleet.advance("30s")

        assert [one["running"] for one in owner.claims] == [True]
        assert [one.fence for one in owner.started] == [4, 4, 9]
        assert (in_hand(fleet), len(works.runs), owner.progress[-1].fence) == (0, 1, 9)
        works.gate.set()
        await fleet.advance("1s")
        assert [one.owner.fence for one in owner.results] == [9]
