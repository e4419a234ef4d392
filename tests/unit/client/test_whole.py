"""The client with the real dispatcher and real agents, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from coditect import Agent, From, Options, TaskRejected, Workflow
from coditect.errors import TaskExpired
from coditect.testing import TestFleet
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.states import TaskState, WorkflowState


def worker() -> Agent:
    agent = Agent("worker", slots=10)

    @agent.capability("number.double")
    async def double(number: int) -> int:
        await asyncio.sleep(0.1)
        if number == 13:
            raise ValueError("no luck")
        return 2 * number

    @agent.capability("text.count")
    async def count(texts: list[str]) -> int:
        return sum(map(len, texts))

    @agent.capability("number.crunch", timeout="20m")
    async def crunch(number: int) -> int:
        await asyncio.sleep(20)
        return number

    return agent


async def test_events_tell_of_every_node_and_end_with_the_workflow() -> None:
    flow = Workflow("told")
    first = flow.task("number.double", 1, name="first")
    flow.task("number.double", From("results.first"), name="second", after=[first])

    async with TestFleet(agents=[worker()]) as fleet:
        run = await fleet.start(flow)
        heard = [event async for event in run.events()]

        assert await run.result(int) == 4

    completed = [event.data["node"] for event in heard if event.type == "node.completed"]
    assert completed == ["first", "second"]
    assert heard[-1].type == "workflow.completed"


async def test_latest_workflow_is_listed_first_over_pages_and_by_state() -> None:
    async with TestFleet(agents=[worker()]) as fleet:
        twice = Options(max_attempts=2)
        handles = [
            await fleet.client.submit("number.double", number, options=twice, durable=True) for number in (1, 13, 3)
        ]
        outcomes = [await handle.outcome() for handle in handles]

        everything = [row.workflow async for row in fleet.client.workflows.list()]
        failed = [row.workflow async for row in fleet.client.workflows.list(state=WorkflowState.FAILED)]
        latest = [row.workflow async for row in fleet.client.workflows.list(limit=2)]

    ids = [handle.run.id for handle in handles]
    assert [outcome.attempt for outcome in outcomes] == [1, 2, 1]
    assert (everything, failed, latest) == (ids[::-1], [ids[1]], ids[:0:-1])


async def test_a_long_capability_refuses_what_is_not_durable_and_says_how() -> None:
    async with TestFleet(agents=[worker()]) as fleet:
        refused = await fleet.client.submit("number.crunch", 7)
        with pytest.raises(TaskRejected) as raised:
            await refused.result(timeout="1m")

        kept = await fleet.client.submit("number.crunch", 7, durable=True)
        assert await kept.result(int, timeout="1h") == 7

    assert raised.value.facts["reason"] == "not_durable"
    assert "durable=True" in str(raised.value.facts["fix"])


@pytest.mark.parametrize("bound", ["timeout", "deadline"])
async def test_a_long_capability_takes_a_direct_task_that_bounds_itself(bound: str) -> None:
    async with TestFleet(agents=[worker()]) as fleet:
        options = Options(timeout="1m") if bound == "timeout" else Options(deadline="25m")
        handle = await fleet.client.submit("number.crunch", 7, options=options)

        assert await handle.result(int, timeout="1h") == 7


async def test_a_task_past_its_deadline_leaves_its_queue_and_is_answered_while_the_agent_is_busy() -> None:
    agent = Agent("single", slots=1)

    @agent.capability("sleep.on")
    async def sleep(seconds: int) -> None:
        await asyncio.sleep(seconds)

    async with TestFleet(agents=[agent]) as fleet:
        await fleet.client.submit("sleep.on", 60)
        late = await fleet.client.submit("sleep.on", 0, deadline="5s")
        with pytest.raises(TaskExpired) as raised:
            await late.result(timeout="50s")

        assert 5 <= fleet.elapsed_seconds < 7
    assert raised.value.facts["reason"] == "expired"


async def test_a_literal_and_a_durable_task_are_taken_up_to_the_inline_limit() -> None:
    text = "x" * (MAX_BODY_BYTES - 1_000)
    flow = Workflow("heavy")
    flow.task("text.count", [text], name="plain")
    flow.task("text.count", [text, From("input")], name="filled")

    async with TestFleet(agents=[worker()]) as fleet:
        handle = await fleet.client.submit("text.count", [text], durable=True)
        run = await fleet.start(flow, "more")

        assert await handle.result(int) == len(text)
        assert await run.result(dict) == {"plain": len(text), "filled": len(text) + 4}
        rows = {row.name: row async for row in run.nodes()}

    assert {name: (row.kind, row.capability) for name, row in rows.items()} == {
        "plain": ("task", "text.count"),
        "filled": ("task", "text.count"),
    }


async def test_a_workflow_waits_for_its_time_and_then_for_a_signal() -> None:
    flow = Workflow("patient")
    paid = flow.signal("paid", after=[flow.wait("2m")], timeout="1m")
    flow.task("number.double", From("results.paid"), after=[paid])

    async with TestFleet(agents=[worker()]) as fleet:
        run = await fleet.start(flow)
        early = await run.signal("paid", 21, id="one")
        again = await run.signal("paid", 22, id="one")
        value = await run.result(int, timeout="5m")

        assert 120 <= fleet.elapsed_seconds < 180
    assert (early, again, value) == ("", "", 42)


async def test_a_denied_approval_rejects_the_workflow_with_its_reason() -> None:
    flow = Workflow("asked")
    flow.approval("Go on?", name="gate", timeout="2d")

    async with TestFleet(agents=[worker()]) as fleet:
        run = await fleet.start(flow)
        await run.deny("gate", by="ada")

        with pytest.raises(TaskRejected) as raised:
            await run.result(timeout="1m")

    assert raised.value.facts["state"] == "rejected"


async def test_a_wait_goes_on_while_the_dispatcher_is_gone() -> None:
    flow = Workflow("slow")
    flow.task("number.crunch", 7, name="only")

    async with TestFleet(agents=[worker()]) as fleet:
        run = await fleet.start(flow)
        waiting = asyncio.ensure_future(run.wait(timeout="1h"))
        await fleet.advance("5s")
        fleet.pause("dispatcher")
        await fleet.advance("5s")
        fleet.resume("dispatcher")

        assert await waiting is WorkflowState.COMPLETED


async def test_task_that_nobody_starts_in_time_has_expired() -> None:
    async with TestFleet(agents=[worker()]) as fleet:
        busy = [await fleet.client.submit("number.crunch", number, timeout="1m") for number in range(10)]
        limits = Options(start_within="5s", idempotency_key="soon")
        handle = await fleet.client.submit("number.double", 7, options=limits)

        with pytest.raises(TaskExpired) as raised:
            await handle.result(timeout="1m")
        waited = fleet.elapsed_seconds
        assert [await one.result(int, timeout="1h") for one in busy] == list(range(10))
        row = await handle.row()

    assert raised.value.facts["reason"] == "start_timeout"
    assert (row.state, row.reason, row.started_at_ms) == (TaskState.FAILED, "start_timeout", None)
    assert 5 <= waited < 7


async def test_deadline_ends_the_handler_that_runs_and_the_workflow() -> None:
    ended: list[float] = []
    agent = Agent("sleeper")

    @agent.capability("sleep.deep", timeout="1h")
    async def sleep(_: int) -> None:
        try:
            await asyncio.sleep(3_000)
        finally:
            ended.append(asyncio.get_running_loop().time())

    flow = Workflow("late")
    flow.task("sleep.deep", 1, name="only", deadline="10s")

    async with TestFleet(agents=[agent]) as fleet:
        began = asyncio.get_running_loop().time()
        run = await fleet.start(flow)

        with pytest.raises(TaskExpired) as raised:
            await run.result(timeout="1m")
        await fleet.settled()
        (attempt,) = [attempt async for attempt in run.attempts("only")]

    assert raised.value.facts["reason"] == "deadline"
    assert [one - began for one in ended] == [pytest.approx(10, abs=0.5)]
    assert (attempt.status, attempt.reason) == ("failed", "deadline")


async def test_results_flow_from_node_to_node_without_being_named() -> None:
    flow = Workflow("data")
    doubled = flow.task("number.double", flow.input["number"])
    many = flow.map("number.double", [1, doubled.result], flow.item)
    flow.task("number.double", many.result[1])

    async with TestFleet(agents=[worker()]) as fleet:
        run = await fleet.start(flow, {"number": 3})

        assert await run.result(int) == 24
        assert await run.result(list[int], node=many.name) == [2, 12]
