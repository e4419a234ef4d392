"""Killed, paused, cut off: what becomes of the tasks, and what a test sees of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Agent, Context, HandoffOffer, Status
from coditect.broker.memory import MemoryBroker
from coditect.client.handle import Handle
from coditect.collaboration.handoffs import HandoffState
from coditect.errors import NotFound, ResultTimeout
from coditect.model.message import Message
from coditect.model.registration import AgentStatus
from coditect.registry.port import Search
from coditect.testing import State, TestFleet
from coditect.wire import routing
from tests.unit.testing.workers import Sleepers


async def registered(fleet: TestFleet) -> list[str]:
    return [record.agent_id for record in await fleet.registry.find(Search())]


@dataclass
class Asleep:
    """A fleet in which one agent runs a task that sleeps."""

    fleet: TestFleet
    sleepers: Sleepers
    handle: Handle
    runner: str
    """The id of the agent that runs it."""


@asynccontextmanager
async def asleep(seconds: float, replicas: int = 1, *, dispatcher: bool = True) -> AsyncIterator[Asleep]:
    sleepers = Sleepers()
    async with TestFleet(agents=[sleepers.agent], replicas=replicas) as fleet:
        if not dispatcher:
            fleet.kill("dispatcher")
        handle = await fleet.submit("sleep.well", seconds)
        await fleet.settled()
        [runner] = sleepers.started
        yield Asleep(fleet, sleepers, handle, runner)


async def test_task_of_a_killed_agent_is_redelivered_and_answered_exactly_once() -> None:
    async with asleep(60, replicas=2) as night:
        await night.fleet.advance("30s")

        night.fleet.kill(night.runner)
        winner = await night.handle.result(str, timeout="2m")
        await night.fleet.advance("10m")

        assert night.sleepers.started == [night.runner, winner]
        assert night.sleepers.left == [winner], "kill -9 runs no finally"
        assert night.fleet.elapsed_seconds == pytest.approx(690, abs=1)
        assert [event.type for event in night.fleet.events].count("task.completed") == 1
        assert await registered(night.fleet) == [winner]


async def test_registry_forgets_the_killed_and_hears_again_of_the_living() -> None:
    async with TestFleet(agents=[Sleepers().agent], replicas=2) as fleet:
        fleet.kill("sleeper-1")
        assert await registered(fleet) == ["sleeper-1", "sleeper-2"]

        await fleet.advance("3s")

        assert await registered(fleet) == ["sleeper-2"]

    async with TestFleet(agents=[Sleepers().agent]) as fleet:
        fleet.wipe_registry()
        assert await registered(fleet) == []

        await fleet.advance("1s")

        assert await registered(fleet) == ["sleeper-1"]


async def test_name_kills_every_process_and_restart_brings_as_many_back() -> None:
    sleepers = Sleepers()
    async with TestFleet(agents=[sleepers.agent], replicas={"sleeper": 3}) as fleet:
        handle = await fleet.submit("sleep.well", 5)
        await fleet.settled()

        killed = fleet.kill("sleeper")
        assert {one.state for one in killed} == {State.KILLED}
        assert len(killed) == 3
        assert not fleet.agents
        with pytest.raises(ResultTimeout):
            await handle.result(timeout="1h")
        await fleet.restart("sleeper")

        assert [one.id for one in fleet.agents] == ["sleeper-4", "sleeper-5", "sleeper-6"]
        assert await handle.result(str) in {one.id for one in fleet.agents}


async def test_handler_that_kills_its_own_process_runs_to_its_next_await_only() -> None:
    trace: list[str] = []
    fleet = TestFleet(agents=[(suicidal := Agent("suicidal"))])

    @suicidal.capability("self.kill")
    async def handle(_: None, ctx: Context) -> str:
        trace.append(ctx.agent_id)
        if len(trace) == 1:
            fleet.kill(ctx.agent_id)
            await asyncio.sleep(0)
            trace.append("went on")
        return "done"

    async with fleet:
        task = await fleet.submit("self.kill")
        await fleet.settled()
        await fleet.restart("suicidal")

        assert await task.result(str) == "done"
        assert trace == ["suicidal-1", "suicidal-2"]


async def test_pause_shorter_than_the_lease_changes_only_when() -> None:
    async with asleep(2, replicas=2) as night:
        night.fleet.pause(night.runner)
        await night.fleet.advance("2500ms")
        assert not night.handle.done
        night.fleet.resume(night.runner)
        await night.fleet.settled()

        assert await night.handle.result(str) == night.runner
        assert night.sleepers.started == [night.runner]
        await night.fleet.advance("20s")
        assert night.runner in await registered(night.fleet)
        assert "agent.offline" not in [event.type for event in night.fleet.events]


async def test_pause_beyond_the_lease_gives_the_task_to_another() -> None:
    async with asleep(60, replicas=2) as night:
        fleet, sleepers = night.fleet, night.sleepers
        fleet.pause(night.runner)
        await fleet.advance("5s")
        assert len(sleepers.started) == 2
        assert night.runner not in await registered(fleet), "no heartbeat, no lease"
        other = await night.handle.result(str, timeout="5m")
        assert other != night.runner
        assert sleepers.left == [other], "nothing of a paused process runs"
        fleet.resume(night.runner)
        await fleet.advance("1m")

        assert sorted(sleepers.left) == ["sleeper-1", "sleeper-2"], "it ran twice"
        assert [event.type for event in fleet.events].count("task.completed") == 2
        assert fleet.crashes == ()
        assert await fleet.request("sleep.well", 1) in {"sleeper-1", "sleeper-2"}


async def test_without_a_control_plane_a_pause_lasts_until_the_broker_loses_patience() -> None:
    async with asleep(2, replicas=2, dispatcher=False) as night:
        night.fleet.pause(night.runner)
        await night.fleet.advance("9s")
        assert night.sleepers.started == [night.runner]

        assert await night.handle.result(str) != night.runner
        assert night.fleet.elapsed_seconds == pytest.approx(12, abs=1)


async def test_drain_finishes_what_runs_and_takes_its_leave() -> None:
    async with asleep(20) as night:
        [ended] = await night.fleet.drain("sleeper")

        assert ended.state is State.ENDED
        assert await night.handle.result(str) == "sleeper-1"
        assert await registered(night.fleet) == []
        assert night.fleet.elapsed_seconds == pytest.approx(20, abs=1)


async def test_dropped_connections_and_a_broker_that_is_down_lose_nothing() -> None:
    async with asleep(30) as night:
        night.fleet.drop_connections()

        assert await night.handle.result(str) == "sleeper-1"
        assert night.sleepers.started == ["sleeper-1"]

    async with asleep(60) as night:
        night.fleet.server.stop()
        await night.fleet.advance("1h")
        night.fleet.server.start()

        assert await night.handle.result(str) == "sleeper-1"


async def test_unknown_process_is_an_error_that_names_the_nearest() -> None:
    async with TestFleet(agents=[Sleepers().agent]) as fleet:
        with pytest.raises(NotFound, match="'sleeper'"):
            fleet.kill("slepper")
        fleet.kill("sleeper")
        with pytest.raises(NotFound, match=r"await fleet\.restart\('sleeper'\)"):
            fleet.pause("sleeper")


async def publish_for_an_hour(fleet: TestFleet) -> None:
    """A foreign task that expires at the broker."""
    async with MemoryBroker(fleet.server) as broker:
        message = Message(b"1", message_id="foreign", expiration_ms=3_600_000)
        await broker.publish(message, exchange=routing.TASKS, routing_key="sleep.well.p1")


async def test_control_plane_tells_of_what_nobody_ran_once_it_was_restarted() -> None:
    async with TestFleet(agents=[Sleepers().agent]) as fleet:
        fleet.kill("sleeper")
        await publish_for_an_hour(fleet)
        await fleet.advance("30m")
        assert await fleet.dead_letters() == ()
        fleet.kill("dispatcher")
        await fleet.advance("31m")
        assert "task.dead" not in {one.type for one in fleet.events}

        await fleet.restart("dispatcher")
        await fleet.settled()

        assert [letter.reason for letter in await fleet.dead_letters("sleep.well")] == ["expired"]
        assert ("task.dead", "foreign") in [
            (one.type, one.subject) for one in fleet.events if one.source == "/dispatcher"
        ]


async def test_state_and_load_of_a_process_can_be_looked_at_and_a_paused_one_killed() -> None:
    async with asleep(5) as night:
        [process] = night.fleet.agents
        assert (process.id, process.name, process.state) == ("sleeper-1", "sleeper", State.RUNNING)
        assert (process.load.status, process.load.running) == (AgentStatus.BUSY, 1)

        night.fleet.pause("sleeper")
        assert night.fleet.kill("sleeper") == (process,)
        await night.fleet.advance("1m")

        assert repr(process) == "VirtualProcess('sleeper-1', killed)"


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


async def sets_state(ctx: Context) -> None:
    await ctx.shared.put("asked", True)


async def makes_a_checkpoint(ctx: Context) -> None:
    await ctx.checkpoint("amid")


async def hands_off(ctx: Context) -> None:
    assert (await ctx.hand_off("ask.nobody", timeout="5s")).state == HandoffState.DECLINED


@pytest.mark.parametrize("asks", [sets_state, makes_a_checkpoint, hands_off])
async def test_running_task_whose_delivery_came_again_asks_under_the_new_fence(
    asks: Callable[[Context], Awaitable[None]],
) -> None:
    agent, refuser, may_ask = Agent("asker"), Agent("refuser"), asyncio.Event()
    runs: list[str] = []

    @agent.capability("ask.late", timeout="10m")
    async def ask(_: None, ctx: Context) -> str:
        runs.append(ctx.agent_id)
        await may_ask.wait()
        await asks(ctx)
        return "asked"

    @refuser.capability("ask.nobody")
    async def refuse(_: None) -> None: ...

    @refuser.on_handoff
    async def decline(_: HandoffOffer) -> bool:
        return False

    async with TestFleet(agents=[agent, refuser]) as fleet:
        handle = await fleet.submit("ask.late", durable=True)
        await fleet.settled()
        fleet.pause("dispatcher")  # which reads both questions in one go, and grants the new fence first
        fleet.drop_connections("asker")
        await fleet.advance("3s")
        may_ask.set()
        await fleet.advance("3s")
        fleet.resume("dispatcher")

        assert await handle.result(str, timeout="1m") == "asked"
        assert len(runs) == 1
