"""Clocks differ: a limit is the time that was left, whatever the clocks of those say who send and receive it."""

from __future__ import annotations

import asyncio
import logging
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from coditect import Agent
from coditect.agent.admission import by_agent_clock
from coditect.broker.memory import MemoryBroker
from coditect.client.options import Options
from coditect.errors import RegistryUnavailable, TaskError
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.model.task import Limits, Task
from coditect.registry.memory import MemoryRegistry
from coditect.testing import TestFleet
from coditect.testing.virtual_time import SeededClock
from coditect.wire import routing

HOUR = 3_600.0
AHEAD = st.sampled_from([-20 * HOUR, -HOUR, -7.0, -0.3, 0.0, 0.05, 2.0, 61.0, HOUR, 20 * HOUR])


def worker() -> Agent:
    agent = Agent("worker", slots=1)

    @agent.capability("work.do", timeout="5m")
    async def work(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    return agent


async def test_agent_whose_clock_is_an_hour_ahead_does_what_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "coditect.registry.port"):
        async with TestFleet(agents=[worker()], clocks_ahead_seconds={"worker": HOUR}) as fleet:
            assert await fleet.request("work.do", 1.0, float, timeout="30s") == 1.0
            handle = await fleet.submit("work.do", 1.0, deadline="30s")
            assert await handle.result(float, timeout="1m") == 1.0

    assert any(vars(one).get("ahead_ms") == HOUR * 1000 for one in caplog.records), "and says so"


async def test_error_of_a_late_task_says_by_whose_clock() -> None:
    async with (
        TestFleet(agents=[worker()], clocks_ahead_seconds={"worker": 30 * HOUR}) as fleet,
        MemoryBroker(fleet.server, name="stranger") as stranger,
    ):
        now_ms = fleet._clock("broker").now_ms()
        headers = {"x-coditect-deadline": now_ms + 60_000, "x-coditect-published-at": now_ms}
        await stranger.publish(Message(b"1.0", headers), exchange=routing.TASKS, routing_key="work.do.p1")
        await fleet.settled()
        (letter,) = await fleet.dead_letters("work.do")

    assert letter.reason == "expired"
    assert letter.error is not None
    assert "after its publication by its sender's clock" in letter.error.message
    assert (
        "this machine's clock is 108000 s ahead of the registry's and too far to be corrected" in letter.error.message
    )


async def test_error_of_a_node_past_its_deadline_says_what_the_dispatcher_knows_of_its_clock() -> None:
    async with TestFleet(agents=[worker()], clocks_ahead_seconds={"dispatcher": 30 * HOUR}) as fleet:
        late = await fleet.submit("work.do", 100.0, deadline="20s", durable=True)

        with pytest.raises(TaskError) as failed:
            await late.result(timeout="1m")

    assert failed.value.facts["reason"] == "deadline"
    told = str(failed.value.facts["message"])
    assert "by its dispatcher's clock; this machine's clock is 108000 s ahead of the registry's" in told


async def test_clock_that_is_set_right_is_believed_again() -> None:
    async with TestFleet(agents=[worker()], clocks_ahead_seconds={"worker": HOUR}) as fleet:
        fleet._clocks_ahead_seconds.clear()  # those who start from now on
        await fleet.restart("worker")
        assert await fleet.request("work.do", 1.0, float, timeout="30s") == 1.0


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """None answers, from the first question on."""

    def refuse(_: MemoryRegistry) -> None:
        raise RegistryUnavailable("The registry does not answer")

    monkeypatch.setattr(MemoryRegistry, "_call", refuse)


@pytest.mark.usefixtures("no_registry")
@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_without_a_registry_a_deadline_is_the_time_that_was_left(ahead: float) -> None:
    async with TestFleet(agents=[worker()], clocks_ahead_seconds={"client": ahead}) as fleet:
        quick = await fleet.submit("work.do", 1.0, deadline="30s")
        assert await quick.result(float, timeout="1m") == 1.0
        began = fleet.elapsed_seconds
        endless = await fleet.submit("work.do", 200.0, deadline="20s")
        with pytest.raises(TaskError) as failed:
            await endless.result(timeout="10m")

    assert failed.value.facts["reason"] == "timeout"
    assert 10 <= fleet.elapsed_seconds - began <= 30, "neither at once nor an hour later"


@pytest.mark.usefixtures("no_registry")
@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_without_a_registry_a_stranger_s_task_comes_in_time_or_its_error_names_the_clock(ahead: float) -> None:
    """Without an expiration nothing refutes a clock that is behind: it may have waited for an hour."""
    async with (
        TestFleet(agents=[worker()], clocks_ahead_seconds={"stranger": ahead}) as fleet,
        MemoryBroker(fleet.server, name="stranger") as stranger,
    ):
        now_ms = fleet._clock("stranger").now_ms()
        headers = {"x-coditect-deadline": now_ms + 60_000, "x-coditect-published-at": now_ms}
        await stranger.publish(Message(b"1.0", headers), exchange=routing.TASKS, routing_key="work.do.p1")
        await fleet.settled()
        letters = await fleet.dead_letters("work.do")

    told = [(one.reason, one.error.message) for one in letters if one.error is not None]
    passed = "The task's deadline passed 3540000 ms before it started"
    late = [("expired", f"{passed}, 3600.0 s after its publication by its sender's clock")]
    assert told == ([] if ahead > 0 else late)


@settings(max_examples=10, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(agent=AHEAD, client=AHEAD, plane=AHEAD, seed=st.integers(0, 1_000))
def test_whatever_clocks_say_only_what_has_time_is_done(agent: float, client: float, plane: float, seed: int) -> None:
    async def scenario() -> None:
        ahead = {"worker": agent, "client": client, "dispatcher": plane}
        async with TestFleet(agents=[worker()], seed=seed, clocks_ahead_seconds=ahead) as fleet:
            quick = await fleet.submit("work.do", 1.0, options=Options(deadline="60s", start_within="50s"))
            assert await quick.result(float, timeout="90s") == 1.0
            kept = await fleet.submit("work.do", 2.0, options=Options(deadline="60s", durable=True))
            assert await kept.result(float, timeout="90s") == 2.0
            began = fleet.elapsed_seconds
            endless = await fleet.submit("work.do", 200.0, deadline="20s")
            with pytest.raises(TaskError):
                await endless.result(timeout="10m")
            assert 10 <= fleet.elapsed_seconds - began <= 90

    asyncio.run(scenario())


@given(age=st.integers(-(10**8), 10**8), left=st.integers(1, 10**8), expires=st.none() | st.integers(1, 10**8))
def test_time_left_is_never_more_than_the_sender_gave(age: int, left: int, expires: int | None) -> None:
    now, published = 10**12, 10**12 - age
    task = Task("work.do", Priority.P1, b"", published_at_ms=published, limits=Limits(deadline_ms=published + left))

    here = by_agent_clock(
        task, Message(b"", expiration_ms=expires), SeededClock(now, lambda: 0.0, Random(0))
    ).limits.deadline_ms

    assert here is not None
    assert here - now <= left
    if age < 0 or (expires is not None and expires <= left <= age):
        assert here - now == left, "nothing is known of how long it waited: all of it is left"
