"""Breakers of agents: their tasks wait or go to a fallback while a dependency fails, and no attempt counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, Breaker, Context, Handle, Retry, Workflow
from coditect.agent.guards import NO_FALLBACK_SECONDS
from coditect.agent.settlement import Settler
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.states import TaskState

RESET_SECONDS = 10.0


@dataclass
class Stub:
    """A dependency that fails until it is mended, and the calls of those who used it."""

    down: bool = True
    calls: list[float] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)

    def call(self) -> None:
        self.calls.append(asyncio.get_running_loop().time())
        if self.down:
            raise OSError("the dependency is down")


def worker(stub: Stub, *, fallback: str | None = None) -> Agent:
    agent = Agent("worker", slots=4)
    guard = Breaker("github", failures=3, on=(OSError,), reset=RESET_SECONDS)

    @agent.capability("code.review", breaker=guard, retry=Retry(max_attempts=3, first="100ms"), fallback=fallback)
    async def review(number: int, ctx: Context) -> int:
        stub.attempts.append(ctx.attempt)
        stub.call()
        return number

    @agent.capability("code.look", retry=1)
    async def look(number: int, ctx: Context) -> int:
        async with ctx.breaker("github"):
            stub.call()
        return number

    @agent.capability("code.lite")
    async def lite(number: int) -> int:
        return -number

    return agent


@asynccontextmanager
async def outage(
    many: int, lasts: str, *, replicas: int = 1, fallback: str | None = None
) -> AsyncIterator[tuple[Stub, TestFleet, list[Handle]]]:
    """A fleet whose dependency has been down for so long, and so many tasks that need it."""
    stub = Stub()
    async with TestFleet(agents=[worker(stub, fallback=fallback)], replicas=replicas) as fleet:
        handles = [await fleet.submit("code.review", number, timeout="20m") for number in range(many)]
        await fleet.advance(lasts)
        yield stub, fleet, handles


async def test_an_outage_opens_the_breaker_of_every_agent_and_each_interval_has_one_probe_in_the_fleet() -> None:
    async with outage(60, "2s", replicas=20) as (stub, fleet, handles):
        tripped = len(stub.calls)

        await fleet.advance(4 * RESET_SECONDS)
        made = stub.calls[tripped:]
        assert 2 <= len(made) <= 4
        assert all(later - earlier >= RESET_SECONDS for earlier, later in pairwise(made))

        stub.down, mended = False, fleet.elapsed_seconds
        assert sorted([await handle.result() for handle in handles]) == list(range(60))
        assert fleet.elapsed_seconds - mended <= RESET_SECONDS + 3
        assert await fleet.dead_letters() == ()


async def test_one_agent_that_trips_opens_the_breaker_of_all_within_a_second() -> None:
    async with outage(30, "2s", replicas=5) as (_, fleet, _):
        waiting = [record.load.waiting for record in await fleet.registry.find(Search())]
        opened = [event.subject for event in fleet.events if event.type == "breaker.opened"]

    assert opened == ["github"]
    assert waiting == [(("code.review", "github"),)] * 5


async def test_no_attempt_of_a_direct_task_counts_when_the_breaker_opens_under_its_handler() -> None:
    async with outage(5, "65s") as (stub, _, handles):
        probed = len(stub.calls)
        stub.down = False

        assert [await handle.result() for handle in handles] == list(range(5))
        assert probed >= 3 + 5  # a call more for each interval
        assert max(stub.attempts) <= 2  # one before the trip, at most


async def test_a_handler_that_meets_an_open_breaker_hands_its_task_back_and_its_capability_waits() -> None:
    async with outage(3, "1s") as (stub, fleet, _):
        handle = await fleet.submit("code.look", 7)
        await fleet.advance("5s")
        stub.down = False

        assert await handle.result() == 7
        assert (await handle.outcome()).attempt == 1


async def test_while_the_breaker_is_open_the_tasks_go_to_the_fallback() -> None:
    async with outage(3, "1s", fallback="code.lite") as (_, fleet, _):
        assert await fleet.request("code.review", 5) == -5


async def test_a_workflow_waits_for_the_breaker_and_none_of_its_attempts_counts() -> None:
    flow = Workflow("reviews")
    for number in range(6):
        flow.task("code.review", number, name=f"n{number}")
    async with outage(0, "0s", replicas=2) as (stub, fleet, _):
        run = await fleet.start(flow)
        await fleet.advance("45s")
        assert len(stub.calls) <= 6 + 5
        stub.down = False

        await run.result()
        assert max(stub.attempts) <= 2  # one before the trip, at most


async def test_an_agent_that_starts_during_an_outage_learns_that_the_breaker_is_open() -> None:
    async with outage(3, "1s") as (stub, fleet, _):
        before = len(stub.calls)
        (late,) = await fleet.add(worker(stub))
        for number in range(20):
            await fleet.submit("code.review", number)
        await fleet.advance("5s")

        assert len(stub.calls) == before
        assert late.lives


async def test_agents_that_start_amid_a_long_outage_probe_within_an_interval() -> None:
    async with outage(3, "10m", replicas=2) as (stub, fleet, handles):
        fleet.kill("worker")
        await fleet.restart("worker")

        stub.down, mended = False, fleet.elapsed_seconds
        assert [await handle.result() for handle in handles] == [0, 1, 2]
        assert fleet.elapsed_seconds - mended <= RESET_SECONDS + 5


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


SLOTS = 4


@dataclass
class Dependency:
    """A dependency that always fails, and the tasks that went to the fallback."""

    calls: int = 0
    instead: Counter[str] = field(default_factory=Counter)


def reviewer(dependency: Dependency) -> Agent:
    agent = Agent("reviewer", slots=SLOTS)

    @agent.capability("code.review", breaker=Breaker("github", failures=1, reset="1h"), fallback="code.glance", retry=1)
    async def review(code: str) -> int:
        dependency.calls += 1
        raise OSError("the dependency is down")

    return agent


def glancer(dependency: Dependency) -> Agent:
    agent = Agent("glancer", slots=SLOTS)

    @agent.capability("code.glance")
    async def glance(code: str, ctx: Context) -> int:
        dependency.instead[ctx.task_id] += 1
        return len(code)

    return agent


async def opened(fleet: TestFleet) -> None:
    """Let the one failure happen that opens the breaker, and the task go to the fallback or wait."""
    await fleet.submit("code.review", "the first")
    await fleet.advance("1s")


async def test_a_task_whose_agent_dies_after_its_fallback_goes_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dependency = Dependency()
    send_to, killed = Settler.send_to, list[str]()

    async def send_and_die(settler: Settler, exchange: str, *args: Any) -> None:
        await send_to(settler, exchange, *args)
        if exchange == routing.SUBMIT and not killed:
            killed.append("reviewer-1")
            fleet.kill("reviewer-1")

    async with TestFleet(agents=[reviewer(dependency), glancer(dependency)], replicas={"reviewer": 2}) as fleet:
        await opened(fleet)
        monkeypatch.setattr(Settler, "send_to", send_and_die)
        handles = [await fleet.submit("code.review", "x" * number) for number in range(8)]
        results = [await handle.result() for handle in handles]
        await fleet.advance("10s")
        letters = await fleet.dead_letters()

    assert killed
    assert results == list(range(8))
    assert letters == ()


async def test_tasks_wait_while_no_agent_offers_the_fallback_and_make_neither_dead_letters_nor_haste(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dependency, tries, send_to = Dependency(), list[float](), Settler.send_to

    async def counted(settler: Settler, exchange: str, *args: Any) -> None:
        if exchange == routing.SUBMIT:
            tries.append(fleet.elapsed_seconds)
        await send_to(settler, exchange, *args)

    monkeypatch.setattr(Settler, "send_to", counted)
    flow = Workflow("reviews")
    flow.task("code.review", "abcd", name="only")
    async with TestFleet(agents=[reviewer(dependency)]) as fleet:
        await opened(fleet)
        handles = [await fleet.submit("code.review", "abc") for _ in range(50)]
        run = await fleet.start(flow)
        await fleet.advance("5m")
        letters, tried = await fleet.dead_letters(), len(tries)
        await fleet.add(glancer(dependency))
        since = fleet.elapsed_seconds

        assert [await handle.result() for handle in handles] == [3] * 50
        assert await run.result() == 4
        assert fleet.elapsed_seconds - since <= NO_FALLBACK_SECONDS + 1
        (node,) = [node async for node in run.nodes()]

    assert letters == ()
    assert tried <= 51 + 5 * 60 / NO_FALLBACK_SECONDS * 2 * SLOTS
    assert (node.state, node.attempt) == (TaskState.COMPLETED, 1)


async def test_an_input_over_the_inline_limit_goes_to_the_fallback_as_its_reference(tmp_path: Path) -> None:
    dependency, settings = Dependency(), Settings(blob_url=f"file://{tmp_path}")
    async with TestFleet(agents=[reviewer(dependency), glancer(dependency)], settings=settings) as fleet:
        await opened(fleet)

        assert await fleet.request("code.review", "x" * (MAX_BODY_BYTES + 1)) == MAX_BODY_BYTES + 1


async def test_a_durable_task_and_a_node_of_a_workflow_go_to_the_fallback() -> None:
    dependency = Dependency()
    flow = Workflow("reviews")
    first = flow.task("code.review", "abc", name="first")
    flow.task("code.review", "abcd", name="second", after=[first])
    async with TestFleet(agents=[reviewer(dependency), glancer(dependency)]) as fleet:
        await opened(fleet)
        handle = await fleet.submit("code.review", "ab", durable=True)
        run = await fleet.start(flow)

        assert await handle.result() == 2
        assert await run.result() == 4
        await fleet.advance("10m")

    assert dependency.calls == 1
    assert max(dependency.instead.values()) == 1


async def test_a_workflow_task_that_waited_in_its_queue_goes_to_the_fallback_under_the_same_attempt() -> None:
    dependency, flow = Dependency(), Workflow("reviews")
    for number in range(5):
        flow.task("code.review", "x" * number, name=f"n{number}", retry=Retry(max_attempts=1))
    async with TestFleet(agents=[reviewer(dependency), glancer(dependency)]) as fleet:
        await opened(fleet)
        fleet.pause("glancer")
        fleet.kill("reviewer")
        run = await fleet.start(flow)
        await fleet.advance("30s")
        await fleet.restart("reviewer")
        await fleet.advance("30s")
        await fleet.restart("glancer")

        await run.result()
        nodes = [node async for node in run.nodes()]

    assert {(node.state, node.attempt) for node in nodes} == {(TaskState.COMPLETED, 1)}
    assert dependency.calls == 1


async def test_a_task_with_a_fallback_waits_without_haste_for_another_breaker_that_its_handler_met_open() -> None:
    agent, calls = Agent("publisher"), list[str]()

    @agent.capability("code.publish", breaker="github", fallback="code.keep")
    async def publish(code: str, ctx: Context) -> str:
        calls.append(code)
        async with ctx.breaker("registry"):
            return code

    flow = Workflow("published")
    flow.task("code.publish", "abc", name="only")
    async with TestFleet(agents=[agent]) as fleet:
        await fleet.client.breakers.open("registry", reason="maintenance")
        run = await fleet.start(flow)
        await fleet.advance("1m")
        met = len(calls)
        await fleet.client.breakers.reset("registry", reason="done")

        assert await run.result() == "abc"

    assert met <= 2
