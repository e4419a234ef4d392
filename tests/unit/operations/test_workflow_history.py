"""A workflow's history is what its rows report, in order of time."""

from __future__ import annotations

from coditect import Agent, Workflow
from coditect.operations.workflows import history_of
from coditect.testing import TestFleet


async def test_history_tells_of_every_attempt_and_every_end_in_order() -> None:
    agent, tries = Agent("worker"), []

    @agent.capability("number.double")
    async def double(number: int) -> int:
        tries.append(number)
        if len(tries) == 1:
            raise ConnectionError("not yet")
        return 2 * number

    flow = Workflow("told")
    flow.task("number.double", 2, name="doubled", after=[flow.wait("1s", name="pause")])
    async with TestFleet(agents=[agent]) as fleet:
        run = await fleet.start(flow)
        await run.result(int)
        nodes = [row async for row in run.nodes()]
        events = history_of(await run.overview(), nodes, [row async for row in run.attempts()])

    assert [(event.event, event.node, event.attempt) for event in events if event.event != "node.ready"] == [
        ("workflow.accepted", "", 0),
        ("node.completed", "pause", 0),
        ("attempt.published", "doubled", 1),
        ("attempt.started", "doubled", 1),
        ("attempt.failed", "doubled", 1),
        ("attempt.published", "doubled", 2),
        ("attempt.started", "doubled", 2),
        ("attempt.completed", "doubled", 2),
        ("node.completed", "doubled", 0),
        ("workflow.completed", "", 0),
    ]
    failed = next(event for event in events if event.event == "attempt.failed")
    assert (failed.reason, "not yet" in failed.message) == ("handler_error", True)


async def test_histories_of_parent_and_child_name_each_other() -> None:
    agent = Agent("worker")

    @agent.capability("number.double")
    async def double(number: int) -> int:
        return 2 * number

    child = Workflow("child")
    child.task("number.double", child.input, name="doubled")
    flow = Workflow("parent")
    flow.workflow(child, 2, name="inner")
    async with TestFleet(agents=[agent]) as fleet:
        run = await fleet.start(flow)
        value = await run.result(int)
        (inner,) = [row async for row in run.nodes()]
        below = fleet.client.workflows.get(inner.children[-1])
        told = [history_of(await one.overview(), [row async for row in one.nodes()], []) for one in (run, below)]

    assert value == 4
    assert [(event.event, event.node, event.message) for event in told[0]] == [
        ("workflow.accepted", "", ""),
        ("node.ready", "inner", ""),
        ("child.started", "inner", below.id),
        ("node.completed", "inner", ""),
        ("workflow.completed", "", ""),
    ]
    assert (told[1][0].event, told[1][0].message) == ("workflow.accepted", f"child of {run.id}, node inner")
