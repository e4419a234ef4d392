"""Breakers of agents: their capabilities wait while a dependency fails, and no attempt counts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

from coditect import Agent, Breaker, Context, Retry, Workflow
from coditect.registry.port import Search
from coditect.testing import TestFleet

RESET_SECONDS = 10.0


@dataclass
class Stub:
    """A dependency that fails until it is mended, and counts its calls."""

    down: bool = True
    calls: list[float] = field(default_factory=list)
    attempts: dict[str, list[int]] = field(default_factory=dict)

    def call(self, at: float) -> None:
        self.calls.append(at)
        if self.down:
            raise OSError("the dependency is down")


def worker(stub: Stub, fleet: list[TestFleet], *, fallback: str | None = None, scope: str = "fleet") -> Agent:
    agent = Agent("worker", slots=4)
    guard = Breaker("github", failures=3, on=(OSError,), reset=RESET_SECONDS, scope=scope)

    @agent.capability("code.review", breaker=guard, retry=Retry(max_attempts=3, first="100ms"), fallback=fallback)
    async def review(number: int, ctx: Context) -> int:
        stub.attempts.setdefault(ctx.task_id, []).append(ctx.attempt)
        stub.call(fleet[0].elapsed_seconds)
        return number

    @agent.capability("code.look", retry=1)
    async def look(number: int, ctx: Context) -> int:
        async with ctx.breaker("github"):
            stub.call(fleet[0].elapsed_seconds)
        return number

    @agent.capability("code.lite")
    async def lite(number: int) -> int:
        return -number

    return agent


def probes(stub: Stub, since: float) -> list[float]:
    return [at for at in stub.calls if at > since]


async def test_an_outage_opens_the_breaker_of_every_agent_and_each_interval_has_one_probe_in_the_fleet() -> None:
    stub, fleets = Stub(), list[TestFleet]()
    async with TestFleet(agents=[worker(stub, fleets)], replicas=20) as fleet:
        fleets.append(fleet)
        handles = [await fleet.submit("code.review", number) for number in range(60)]
        await fleet.advance("2s")
        tripped = max(stub.calls)

        await fleet.advance(4 * RESET_SECONDS)
        made = probes(stub, tripped)
        assert 2 <= len(made) <= 4
        assert all(later - earlier >= RESET_SECONDS for earlier, later in pairwise(made))

        stub.down, mended = False, fleet.elapsed_seconds
        assert sorted([await handle.result() for handle in handles]) == list(range(60))
        assert fleet.elapsed_seconds - mended <= RESET_SECONDS + 3
        assert await fleet.dead_letters() == ()


async def test_one_agent_that_trips_opens_the_breaker_of_all_within_a_second() -> None:
    stub, fleets = Stub(), list[TestFleet]()
    async with TestFleet(agents=[worker(stub, fleets)], replicas=5) as fleet:
        fleets.append(fleet)
        for number in range(30):
            await fleet.submit("code.review", number)
        await fleet.advance("2s")

        waiting = [record.load.waiting for record in await fleet.registry.find(Search())]
        opened = [event for event in fleet.events if event.type == "breaker.opened"]

    assert [event.subject for event in opened] == ["github"]
    assert waiting == [(("code.review", "github"),)] * 5


async def test_no_attempt_of_a_direct_task_counts_when_the_breaker_opens_under_its_handler() -> None:
    stub, fleets = Stub(), list[TestFleet]()
    async with TestFleet(agents=[worker(stub, fleets)]) as fleet:
        fleets.append(fleet)
        handles = [await fleet.submit("code.review", number) for number in range(5)]
        await fleet.advance("65s")
        probed = len(stub.calls)
        stub.down = False

        assert [await handle.result() for handle in handles] == list(range(5))
        assert probed >= 3 + 5  # a call more for each interval
        assert max(max(attempts) for attempts in stub.attempts.values()) <= 2  # one before the trip, at most


async def test_a_handler_that_meets_an_open_breaker_hands_its_task_back_and_its_capability_waits() -> None:
    stub, fleets = Stub(), list[TestFleet]()
    async with TestFleet(agents=[worker(stub, fleets)]) as fleet:
        fleets.append(fleet)
        for number in range(3):
            await fleet.submit("code.review", number)
        await fleet.advance("1s")
        handle = await fleet.submit("code.look", 7)
        await fleet.advance("5s")
        stub.down = False

        assert await handle.result() == 7
        assert (await handle.outcome()).attempt == 1


async def test_while_the_breaker_is_open_the_tasks_go_to_the_fallback() -> None:
    stub, fleets = Stub(), list[TestFleet]()
    async with TestFleet(agents=[worker(stub, fleets, fallback="code.lite")]) as fleet:
        fleets.append(fleet)
        for number in range(3):
            await fleet.submit("code.review", number)
        await fleet.advance("1s")

        assert await fleet.request("code.review", 5) == -5


async def test_a_workflow_waits_for_the_breaker_and_none_of_its_attempts_counts() -> None:
    stub, fleets = Stub(), list[TestFleet]()
    flow = Workflow("reviews")
    for number in range(6):
        flow.task("code.review", number, name=f"n{number}")
    async with TestFleet(agents=[worker(stub, fleets)], replicas=2) as fleet:
        fleets.append(fleet)
        run = await fleet.start(flow)
        await fleet.advance("45s")
        assert len(stub.calls) <= 6 + 5
        stub.down = False

        await run.result()
        assert max(max(attempts) for attempts in stub.attempts.values()) <= 2  # one before the trip, at most


async def test_an_agent_that_starts_during_an_outage_learns_that_the_breaker_is_open() -> None:
    stub, fleets = Stub(), list[TestFleet]()
    agent = worker(stub, fleets)
    async with TestFleet(agents=[agent]) as fleet:
        fleets.append(fleet)
        for number in range(3):
            await fleet.submit("code.review", number)
        await fleet.advance("1s")
        before = len(stub.calls)
        (late,) = await fleet.add(agent)
        for number in range(20):
            await fleet.submit("code.review", number)
        await fleet.advance("5s")

        assert len(stub.calls) == before
        assert late.lives


async def test_a_capability_that_two_open_breakers_hold_back_waits_until_both_have_closed() -> None:
    down = {"first", "second"}
    first = Breaker("first", failures=1, on=(OSError,), reset="1m", scope="local")
    second = Breaker("second", failures=1, on=(OSError,), reset="5s", scope="local")
    agent = Agent("worker", slots=4, breakers=[second])

    @agent.capability("code.review", breaker=first, retry=1)
    async def review(name: str, ctx: Context) -> str:
        await asyncio.sleep(1)
        async with ctx.breaker("second"):
            return name

    @agent.capability("code.trip", retry=1)
    async def trip(name: str, ctx: Context) -> str:
        async with ctx.breaker(name):
            if name in down:
                raise OSError(name)
        return name

    async with TestFleet(agents=[agent]) as fleet:
        handle = await fleet.submit("code.review", "x")
        await fleet.advance("100ms")
        for name in ("first", "second"):
            await fleet.submit("code.trip", name)
        await fleet.advance("6s")
        down.clear()
        both = [record.load.waiting for record in await fleet.registry.find(Search())]
        assert await fleet.request("code.trip", "second") == "second"
        await fleet.advance("5s")
        one = [record.load.waiting for record in await fleet.registry.find(Search())]

        assert await handle.result() == "x"

    assert both == [(("code.review", "second"),)]
    assert one == [(("code.review", "first"),)]
