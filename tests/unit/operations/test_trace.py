"""The path of a task or workflow, and a workflow's history."""

from __future__ import annotations

import pytest

from coditect import Agent, Context, Retry, Workflow
from coditect.api.connections import SharedConnections
from coditect.errors import NotFound, TaskFailed
from coditect.operations.connections import Connections
from coditect.operations.trace import Hop, task_path
from coditect.operations.workflows import history_of
from coditect.registry.memory import MemoryRegistry
from coditect.testing import TestFleet
from tests.unit.cli.scene import ProbedBroker

ONCE = Retry(max_attempts=2, first="1s", cap="1s")


def connections_of(fleet: TestFleet) -> Connections:
    """The connections of a use case to a fleet under test."""
    return SharedConnections(
        broker=lambda: ProbedBroker(fleet.server, {}),
        registry=fleet.registry,
        http_agents=MemoryRegistry(),
        client=fleet.client,
        environ={},
    )


def worker(failures: int = 0) -> Agent:
    agent, left = Agent("worker"), [failures]

    @agent.capability("number.double", retry=ONCE)
    async def double(number: int, ctx: Context) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("not yet")
        return 2 * number

    return agent


def outline(hop: Hop) -> tuple[object, ...]:
    return f"{hop.kind} {hop.name.split()[0] if hop.name else ''} {hop.state}", *map(outline, hop.below)


def chain() -> Workflow:
    flow = Workflow("chain")
    first = flow.task("number.double", 2, name="first")
    flow.task("number.double", first.result, name="second")
    return flow


def nested() -> Workflow:
    child = Workflow("child")
    child.task("number.double", child.input, name="doubled")
    flow = Workflow("parent")
    flow.workflow(child, 2, name="inner")
    return flow


async def test_workflow_is_told_with_every_node_and_attempt_and_how_long_each_took() -> None:
    async with TestFleet(agents=[worker(failures=1)]) as fleet:
        opened = connections_of(fleet)
        run = await fleet.start(chain())
        await run.result(int)

        path = await task_path(opened, run.id)
        node = await task_path(opened, f"{run.id}:first")

    assert outline(path) == (
        "workflow chain completed",
        ("node first completed", ("attempt 1 failed",), ("attempt 2 completed",)),
        ("node second completed", ("attempt 1 completed",)),
    )
    failed, done = path.below[0].below
    assert failed.reason.startswith("handler_error: ")
    assert "not yet" in failed.reason
    assert (failed.agent, done.agent) == ("worker-1", "worker-1")
    assert failed.waited_ms is not None
    assert done.ran_ms is not None
    assert path.ran_ms is not None
    assert path.ran_ms >= (path.below[0].ran_ms or 0) > 0  # the pause before the retry is in it
    assert outline(node) == outline(path.below[0])


async def test_children_lie_below_the_node_that_ran_them() -> None:
    async with TestFleet(agents=[worker()]) as fleet:
        run = await fleet.start(nested())
        await run.result(int)

        path = await task_path(connections_of(fleet), run.id)

    assert outline(path) == (
        "workflow parent completed",
        ("node inner completed", ("workflow child completed", ("node doubled completed", ("attempt 1 completed",)))),
    )


async def test_redriven_node_is_told_with_the_redrive() -> None:
    async with TestFleet(agents=[worker(failures=2)]) as fleet:
        run = await fleet.start(chain())
        with pytest.raises(TaskFailed):
            await run.result(int)
        await run.redrive("first")
        await run.result(int)

        path = await task_path(connections_of(fleet), run.id)

    assert outline(path.below[0]) == (
        "node first completed",
        ("attempt 1 failed",),
        ("attempt 2 failed",),
        ("redrive 1 completed",),
    )


async def test_dead_letter_of_a_direct_task_is_told_with_its_attempts() -> None:
    async with TestFleet(agents=[worker(failures=9)]) as fleet:
        handle = await fleet.submit("number.double", 2)
        with pytest.raises(TaskFailed):
            await handle.result(int)

        path = await task_path(connections_of(fleet), handle.task_id)

    assert outline(path) == (
        "task number.double dead",
        ("attempt 1 failed",),
        ("attempt 2 failed",),
        ("dead letter dead.number.double handler_error",),
    )
    assert [hop.agent for hop in path.below[:2]] == ["worker-1", "worker-1"]
    assert path.below[0].reason == "ConnectionError: not yet"
    assert path.began_ms is not None
    assert path.below[2].began_ms is not None


async def test_what_has_left_no_trace_is_not_found_and_the_error_says_why() -> None:
    async with TestFleet(agents=[worker()]) as fleet:
        handle = await fleet.submit("number.double", 2)
        await handle.result(int)

        with pytest.raises(NotFound, match="leaves nothing"):
            await task_path(connections_of(fleet), handle.task_id)
        with pytest.raises(NotFound, match="no id of a task"):
            await task_path(connections_of(fleet), "review")

        run = await fleet.start(chain())
        await run.result(int)

        with pytest.raises(NotFound, match="no such node"):
            await task_path(connections_of(fleet), f"{run.id}:third")


async def test_history_tells_of_every_attempt_and_every_end_in_order() -> None:
    flow = Workflow("told")
    flow.task("number.double", 2, name="doubled", after=[flow.wait("1s", name="pause")])
    async with TestFleet(agents=[worker(failures=1)]) as fleet:
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
    async with TestFleet(agents=[worker()]) as fleet:
        run = await fleet.start(nested())
        value = await run.result(int)
        (inner,) = [row async for row in run.nodes()]
        below = fleet.client.workflows.get(inner.children[-1])
        histories = [
            history_of(await flow_run.overview(), [row async for row in flow_run.nodes()], [])
            for flow_run in (run, below)
        ]

    assert value == 4
    assert [(event.event, event.node, event.message) for event in histories[0]] == [
        ("workflow.accepted", "", ""),
        ("node.ready", "inner", ""),
        ("child.started", "inner", below.id),
        ("node.completed", "inner", ""),
        ("workflow.completed", "", ""),
    ]
    assert (histories[1][0].event, histories[1][0].message) == ("workflow.accepted", f"child of {run.id}, node inner")
