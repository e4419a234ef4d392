"""Too much work: the broker refuses P2, then P1, never P0; a batch slows down instead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from coditect import Agent, Client, Handle, Workflow
from coditect.client.direct import FULL_SECONDS, RETRY_AFTER_SECONDS
from coditect.errors import Overloaded, SetupError
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState

MOST = 5


def bounded(*, seconds: float = 1.0, done: list[int] | None = None) -> Agent:
    """An agent that does one task after another, and lets few wait."""
    agent = Agent("bounded", slots=1)

    @agent.capability("work.do", max_queued=MOST)
    async def work(number: int) -> int:
        await asyncio.sleep(seconds)
        if done is not None:
            done.append(number)
        return number

    return agent


async def refused(client: Client, priority: str) -> tuple[int, Overloaded]:
    """How many tasks were taken before one was refused, and its error."""
    taken = 0
    while True:
        try:
            await client.submit("work.do", taken, priority=priority)
        except Overloaded as error:
            return taken, error
        taken += 1


async def test_p2_is_refused_first_then_p1_and_never_p0() -> None:
    async with TestFleet(agents=[bounded(seconds=1_000)]) as fleet:
        await fleet.submit("work.do", 0)
        await fleet.settled()

        first, error = await refused(fleet.client, "p2")
        second, _ = await refused(fleet.client, "p1")
        for number in range(5 * MOST):
            await fleet.submit("work.do", number, priority="p0")

    assert MOST <= first < second
    assert error.retryable
    assert RETRY_AFTER_SECONDS <= float(str(error.facts["retry_after"])) <= 2 * RETRY_AFTER_SECONDS
    assert (error.facts["capability"], error.facts["priority"]) == ("work.do", "p2")
    assert "fix" in error.facts


async def test_single_submit_is_refused_within_seconds_and_nothing_was_taken() -> None:
    done: list[int] = []
    async with TestFleet(agents=[bounded(seconds=100, done=done)]) as fleet:
        taken, _ = await refused(fleet.client, "p2")
        began = fleet.elapsed_seconds
        with pytest.raises(Overloaded):
            await fleet.submit("work.do", -1, priority="p2")
        waited = fleet.elapsed_seconds - began
        await fleet.advance("2h")

    assert waited <= FULL_SECONDS
    assert sorted(done) == list(range(taken))


async def test_submit_that_finds_room_in_the_meantime_is_taken() -> None:
    async with TestFleet(agents=[bounded(seconds=0.5)]) as fleet:
        handles = [await fleet.submit("work.do", number, priority="p2") for number in range(5 * MOST)]

        assert [await handle.result(int) for handle in handles] == list(range(5 * MOST))


@pytest.mark.parametrize("concurrency", [1, 7, 500])
async def test_batch_slows_down_to_the_pace_of_the_agents(concurrency: int) -> None:
    many = 10 * MOST
    async with TestFleet(agents=[bounded(seconds=3.0)]) as fleet:
        batch = fleet.client.submit_many("work.do", range(many), concurrency=concurrency, priority="p2")
        handles = [handle async for handle in batch]
        results = [await handle.result(int, timeout="1h") for handle in handles]

    assert results == list(range(many))


async def test_batch_that_finds_no_room_in_time_runs_no_task_whose_handle_it_did_not_yield() -> None:
    done: list[int] = []
    handles: list[Handle] = []
    async with TestFleet(agents=[bounded(seconds=100, done=done)]) as fleet:
        with pytest.raises(Overloaded, match="retry_after"):
            async for handle in fleet.client.submit_many("work.do", range(100), priority="p2", submit_timeout="10s"):
                handles.append(handle)
        await fleet.advance("3h")

    assert len(handles) == len(done) < 100


async def test_nodes_of_a_workflow_are_never_refused() -> None:
    flow = Workflow("many")
    for number in range(4 * MOST):
        flow.task("work.do", number, name=f"n{number}")

    done: list[int] = []
    async with TestFleet(agents=[bounded(seconds=3.0, done=done)]) as fleet:
        run = await fleet.start(flow)
        state = await run.wait(timeout="2h")

    assert state is WorkflowState.COMPLETED
    assert len(done) == 4 * MOST


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_wrong_bound_is_refused_at_the_declaration(wrong: int) -> None:
    with pytest.raises(SetupError, match="max_queued"):
        Agent("bounded").capability("work.do", max_queued=wrong)


async def test_batch_has_few_unconfirmed_tasks_while_the_queue_refuses_and_many_again_after_it() -> None:
    most, many = 64, 300
    agent = bounded(seconds=1.0)
    async with TestFleet(agents=[agent]) as fleet:
        under_way, sizes = 0, list[int]()
        send = fleet.client._requests.send

        def counted(*args: Any, **how: Any) -> Awaitable[None]:
            nonlocal under_way
            sent = asyncio.ensure_future(send(*args, **how))
            under_way += 1
            sizes.append(under_way)

            def over(_: object) -> None:
                nonlocal under_way
                under_way -= 1

            sent.add_done_callback(over)
            return sent

        fleet.client._requests.send = counted  # type: ignore[method-assign]
        handles = [
            handle async for handle in fleet.client.submit_many("work.do", range(many), concurrency=most, priority="p2")
        ]
        busy = sizes[len(sizes) // 2 :]
        await handles[-1].result(int, timeout="1h")
        del sizes[:]
        async for _ in fleet.client.submit_many("work.do", range(many), concurrency=most, priority="p0"):
            pass

    assert max(busy) <= most // 8
    assert max(sizes) > most // 2, "a queue that takes everything gets a whole window"
