"""Whatever is killed, paused, cut off or wiped, in any order: every accepted task is answered."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Status
from coditect.testing import State, TestFleet
from tests.unit.testing.workers import Sleepers

FAULTS = ("kill", "pause", "drain", "drop", "wipe", "broker", "alarm", "confirms", "dispatcher")
Plan = list[tuple[str, float]]


async def strike(fleet: TestFleet, fault: str, span: float) -> None:
    """One fault that lasts so many seconds."""
    victim = next(one.id for one in fleet.agents if one.state is State.RUNNING)
    match fault:
        case "kill":
            fleet.kill(victim)
            await fleet.advance(span)
            await fleet.restart(victim)
        case "pause":
            fleet.pause(victim)
            await fleet.advance(span)
            fleet.resume(victim)
        case "drain":
            await fleet.drain(victim)
            await fleet.restart(victim)
        case "drop":
            fleet.drop_connections()
        case "wipe":
            fleet.wipe_registry()
        case "broker":
            fleet.server.stop()
            await fleet.advance(span)
            fleet.server.start()
        case "alarm":
            fleet.server.block()
            await fleet.advance(span)
            fleet.server.unblock()
        case "confirms":
            fleet.server.lose_next_confirms(3)
        case "dispatcher":
            await fleet.restart("dispatcher")
    await fleet.advance(span)


async def outcomes(seed: int, plan: Plan) -> list[Status]:
    sleepers = Sleepers(slots=2)
    async with TestFleet(agents=[sleepers.agent], replicas=3, seed=seed) as fleet:
        handles = [await fleet.submit("sleep.well", number % 5) for number in range(25)]
        for fault, span in plan:
            await strike(fleet, fault, span)
        ended = [(await handle.outcome(timeout="1h")).status for handle in handles]
        await fleet.advance("10m")
        assert await fleet.dead_letters() == ()
        assert all(one.load.running == 0 for one in fleet.agents), "no slot is lost"
        return ended


PLANS = st.lists(st.tuples(st.sampled_from(FAULTS), st.floats(0, 15)), max_size=8)


@pytest.mark.proof
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1_000_000), plan=PLANS)
def test_every_task_is_answered(seed: int, plan: Plan) -> None:
    assert asyncio.run(outcomes(seed, plan)) == [Status.COMPLETED] * 25


@pytest.mark.endurance
@pytest.mark.proof
@pytest.mark.timeout(900)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1_000_000), plan=PLANS)
def test_every_task_is_answered_of_many_plans(seed: int, plan: Plan) -> None:
    assert asyncio.run(outcomes(seed, plan)) == [Status.COMPLETED] * 25
