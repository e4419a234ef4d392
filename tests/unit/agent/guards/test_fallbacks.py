"""Tasks that go to a breaker's fallback: nothing is lost, and nothing spins, whatever happens on their way there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, Breaker, Context, Retry, Workflow
from coditect.agent.guards import NO_FALLBACK_SECONDS
from coditect.agent.settlement import Settler
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.states import TaskState

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


async def test_a_task_whose_agent_dies_after_it_went_to_the_fallback_goes_there_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
