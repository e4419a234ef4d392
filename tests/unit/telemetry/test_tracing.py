"""Spans of tasks and workflows on the in-memory twins: names, kinds, attributes, one tree for each trace, links."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF
from opentelemetry.trace import SpanKind, StatusCode

from coditect import Agent, Context, Retry, Workflow
from coditect.aio.clock import SystemClock
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import LockTaken, TaskFailed
from coditect.model.message import Message
from coditect.operations.dead_letters import DeadLetters, Selection
from coditect.telemetry.tracing import current_trace_ids
from coditect.wire import routing
from coditect.workflow.states import TaskState
from tests.support import eventually
from tests.unit.telemetry.tracing_scene import attributes, context, linked, parent_id, span_id, traced_fleet

PUBLISH = "publish coditect.submit:math.double.p1"
PROCESS = "process coditect.submit:math.double.p1:tasks.math.double.p1"


def doubler(seen: list[dict[str, str]] | None = None) -> Agent:
    agent = Agent("doubler")

    @agent.capability("math.double")
    async def double(value: int) -> int:
        if seen is not None:
            seen.append(current_trace_ids())
        return 2 * value

    @agent.capability("math.quadruple")
    async def quadruple(value: int, ctx: Context) -> int:
        return 2 * int(await ctx.request("math.double", value))

    return agent


def failing(times: int) -> Agent:
    agent, left = Agent("failing"), [times]

    @agent.capability("math.fail", retry=Retry(max_attempts=2, first="1ms", cap="1ms"))
    async def fail(value: int) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("no such number")
        return value

    return agent


async def test_task_is_one_trace_from_the_submit_to_the_handler() -> None:
    async with traced_fleet([doubler()]) as scene:
        assert await scene.client.request("math.double", 4) == 8
        await scene.settled(PROCESS)

        (publish,), (process,) = scene.spans.named(PUBLISH), scene.spans.named(PROCESS)

        assert scene.spans.trees() == [(PUBLISH, ((PROCESS, ()),))]
        assert (publish.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
        assert attributes(publish) == {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": "coditect.submit:math.double.p1",
            "messaging.rabbitmq.destination.routing_key": "math.double.p1",
            "messaging.message.id": attributes(process)["coditect.task.id"],
            "coditect.task.id": attributes(process)["coditect.task.id"],
            "coditect.capability": "math.double",
            "coditect.priority": "p1",
            "coditect.attempt": 1,
        }
        told = attributes(process)
        assert told["messaging.destination.name"] == "coditect.submit:math.double.p1:tasks.math.double.p1"
        assert (told["messaging.operation.name"], told["messaging.operation.type"]) == ("process", "process")
        assert str(told["coditect.agent.id"]).startswith("doubler-")


async def test_request_of_a_handler_is_below_its_attempt() -> None:
    async with traced_fleet([doubler()]) as scene:
        assert await scene.client.request("math.quadruple", 3) == 12
        await scene.settled("process coditect.submit:math.quadruple")

        outer = "process coditect.submit:math.quadruple.p1:tasks.math.quadruple.p1"
        assert scene.spans.trees() == [
            ("publish coditect.submit:math.quadruple.p1", ((outer, ((PUBLISH, ((PROCESS, ()),)),)),))
        ]
        assert len(scene.spans.traces()) == 1


async def test_trace_of_a_foreign_publisher_is_carried_on_with_its_state_and_baggage() -> None:
    agent, seen = Agent("reader"), list[Any]()

    @agent.capability("trace.read")
    async def read(value: int, ctx: Context) -> dict[str, str]:
        seen.append(trace.get_current_span().get_span_context())
        await ctx.request("trace.inner", value)
        return current_trace_ids()

    @agent.capability("trace.inner")
    async def inner(value: int, ctx: Context) -> int:
        seen.append(dict(ctx.headers))
        return value

    headers = {"traceparent": f"00-{7:032x}-{9:016x}-01", "tracestate": "vendor=1", "baggage": "tenant=blue"}
    async with traced_fleet([agent]) as scene:
        message = Message(b"1", headers, message_id="foreign")
        await scene.broker.publish(message, exchange=routing.TASKS, routing_key="trace.read.p1")
        await scene.settled("process coditect.tasks:trace.read")

        (process,) = scene.spans.named("process coditect.tasks:trace.read")

    assert (parent_id(process), context(process).trace_id) == (9, 7)
    current, inner_headers = seen
    assert (current.trace_id, current.span_id) == (7, span_id(process))
    assert (inner_headers["tracestate"], inner_headers["baggage"]) == ("vendor=1", "tenant=blue")


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", f"ff-{7:032x}-{9:016x}-01", f"00-{0:032x}-{9:016x}-01", f"00-{7:032x}-{0:016x}-01"]
)
async def test_invalid_trace_of_a_foreign_publisher_begins_another_trace(traceparent: str) -> None:
    async with traced_fleet([doubler()]) as scene:
        message = Message(b"1", {"traceparent": traceparent, "tracestate": "vendor=1"}, message_id="foreign")
        await scene.broker.publish(message, exchange=routing.TASKS, routing_key="math.double.p1")
        await scene.settled("process coditect.tasks:math.double")

        (process,) = scene.spans.named("process")
        assert process.parent is None
        assert context(process).trace_id != 7


async def test_trace_that_the_client_does_not_keep_is_in_no_message_and_no_agent_begins_one() -> None:
    agent, seen = Agent("reader"), dict[str, Any]()

    @agent.capability("trace.read")
    async def read(value: int, ctx: Context) -> int:
        seen["outer"], seen["log"] = dict(ctx.headers), current_trace_ids()
        return int(await ctx.request("trace.inner", value))

    @agent.capability("trace.inner")
    async def inner(value: int, ctx: Context) -> int:
        seen["inner"] = dict(ctx.headers)
        return value

    async with traced_fleet([agent], client_sampler=DEFAULT_OFF) as scene:
        assert await scene.client.request("trace.read", 1) == 1

        assert scene.spans.all() == ()
    assert seen["outer"] == {}
    assert seen["log"] == {}  # the task's id tells its lines
    assert seen["inner"]["traceparent"].endswith("-00")  # what the handler asks for is told in so many words


async def test_retry_of_a_task_that_is_not_traced_begins_no_trace() -> None:
    async with traced_fleet([failing(2)], client_sampler=DEFAULT_OFF) as scene:
        with pytest.raises(TaskFailed):
            await scene.client.request("math.fail", 4)

        letters = DeadLetters(scene.broker, SystemClock())
        (letter,) = [one async for one in letters.browse([routing.dead_queue("math.fail")], Selection(), most=2)]
        assert ["trace" in one for one in letter.errors] == [False, False]
        assert scene.spans.all() == ()


async def test_workflow_that_the_client_does_not_keep_has_no_spans_in_any_process() -> None:
    async with traced_fleet([doubler()], dispatcher=True, client_sampler=DEFAULT_OFF) as scene:
        run = await scene.client.start(pair("math.quadruple"))

        assert await run.result(timeout="10s") == 16
        assert scene.spans.all() == ()


async def test_task_of_a_foreign_publisher_without_a_trace_begins_one() -> None:
    async with traced_fleet([doubler()], client_sampler=DEFAULT_OFF) as scene:
        await scene.broker.publish(Message(b"1"), exchange=routing.TASKS, routing_key="math.double.p1")
        await scene.settled("process coditect.tasks:math.double")


async def test_retry_is_another_span_of_the_trace_that_links_to_the_attempt_before() -> None:
    async with traced_fleet([failing(1)]) as scene:
        assert await scene.client.request("math.fail", 4) == 4
        await scene.settled("process", many=2)

        first, second = scene.spans.named("process")

    assert (first.status.status_code, attributes(first)["error.type"]) == (StatusCode.ERROR, "OSError")
    assert first.status.description == "no such number"
    assert list(linked(second)) == [span_id(first)]
    assert (attributes(second)["coditect.attempt"], second.status.status_code) == (2, StatusCode.UNSET)
    assert first.parent == second.parent  # the submit


async def test_dead_letter_and_its_redrive_belong_to_the_trace() -> None:
    async with traced_fleet([failing(2)]) as scene:
        handle = await scene.client.submit("math.fail", 4)
        with pytest.raises(TaskFailed):
            await handle.result(timeout="10s")
        letters = DeadLetters(scene.broker, SystemClock(), scene.client._requests.tracing)
        settled = await letters.redrive([routing.dead_queue("math.fail")], Selection())
        await scene.settled("process", many=3)

        (dead,) = scene.spans.named("publish coditect.dead:math.fail.p1")
        (redrive,) = scene.spans.named("publish coditect.tasks:math.fail.p1")
        _, second, third = scene.spans.named("process")

    assert settled.count == 1
    assert parent_id(dead) == span_id(second)
    assert list(linked(redrive)) == [span_id(second)]
    assert parent_id(third) == span_id(redrive)
    assert attributes(third)["coditect.redrive"] == 1
    assert len(scene.spans.traces()) == 1


def pair(capability: str = "math.double") -> Workflow:
    flow = Workflow("pair")
    first = flow.task(capability, 2, name="first")
    flow.task("math.double", first.result, name="second")
    return flow


async def test_workflow_is_one_trace_of_every_hop() -> None:
    async with traced_fleet([doubler()], dispatcher=True) as scene:
        run = await scene.client.start(pair("math.quadruple"))
        assert await run.result(timeout="10s") == 16
        await scene.settled("process coditect.results", many=2)

        spans = scene.spans
        node = {span_id(one) for one in spans.named("process coditect.control")}
        published = [one for one in spans.named("publish coditect") if parent_id(one) in node]

    assert len(spans.traces()) == 1
    assert [attributes(one)["coditect.node_id"] for one in published] == ["first", "second"]
    ((root, ((recorded, nodes),)),) = spans.trees()
    assert (root, recorded, len(nodes)) == ("publish coditect.control", "process coditect.control", 2)
    assert all("process coditect.results" in [name for name, _ in below] for _, below in nodes)
    inner = [name for _, below in nodes for process, deeper in below for name, _ in deeper]
    assert inner == [PUBLISH]  # what the handler of the first node asked for

    whole, named_nodes = (
        [one for one in spans.all() if ("control" in one.name) is of_workflow] for of_workflow in (True, False)
    )
    assert [named(one) for one in whole] == 2 * [(run.id, "pair", None)]
    assert len(named_nodes) == 8  # three each for two nodes, and two for what the handler of the first asked for
    assert {named(one) for one in named_nodes} == {(run.id, "pair", "first"), (run.id, "pair", "second")}


async def test_retried_node_links_to_its_attempt_before() -> None:
    flow = Workflow("retried")
    flow.task("math.fail", 3, name="only")
    async with traced_fleet([failing(1)], dispatcher=True) as scene:
        run = await scene.client.start(flow)
        assert await run.result(timeout="10s") == 3
        await scene.settled("process coditect.results", many=2)

        first, second = (one for one in scene.spans.named("publish") if "coditect.node_id" in attributes(one))
        failed, done = scene.spans.named("process coditect.results")

    assert list(linked(first)) == []
    assert list(linked(second)) == [span_id(first)]
    assert [attributes(one)["coditect.state"] for one in (failed, done)] == ["retry_wait", "completed"]
    assert len(scene.spans.traces()) == 1


WORKFLOW = ("coditect.workflow.id", "coditect.workflow.name", "coditect.node_id")


def named(span: ReadableSpan) -> tuple[object, ...]:
    """The workflow's id and name and the node's name that a span has."""
    return tuple(attributes(span).get(name) for name in WORKFLOW)


async def awaits_approval(run: WorkflowRun) -> bool:
    return [one.state async for one in run.nodes() if one.name == "ask"] == [TaskState.AWAITING_APPROVAL]


async def test_spans_of_a_child_workflow_name_the_child() -> None:
    inner, outer = pair(), Workflow("outer")
    outer.workflow(inner, name="inside")
    async with traced_fleet([doubler()], dispatcher=True) as scene:
        run = await scene.client.start(outer)
        await run.result(timeout="10s")
        await scene.settled("process coditect.results", many=2)
        children = {named(one) for one in scene.spans.all() if "control" not in one.name}

    assert {(name, node) for _, name, node in children} == {("pair", "first"), ("pair", "second")}
    assert run.id not in {child for child, _, _ in children}


async def test_spans_of_a_workflow_that_a_schedule_starts_name_it_too() -> None:
    flow = Workflow("nightly")
    flow.task("math.double", 2, name="only", after=[flow.approval("Now?", name="ask")])
    async with traced_fleet([doubler()], dispatcher=True) as scene:
        await scene.client.schedules.create("nights", flow, every="1h")
        run = scene.client.workflows.get(str(await scene.client.schedules.run("nights")))
        await eventually(lambda: awaits_approval(run))
        await run.grant("ask", by="ada")
        await scene.settled("process coditect", "await approval")
        spans = scene.spans.all()

    assert {named(one) for one in spans} == {(run.id, "nightly", "only"), (run.id, "nightly", "ask")}
    assert len(scene.spans.traces()) == len(spans) == 2


async def test_approval_signal_and_wait_are_spans_as_long_as_the_wait() -> None:
    flow = Workflow("release")
    asked = flow.approval("Ship it?", name="ask")
    told = flow.signal("go", name="told", after=[asked])
    paused = flow.wait("20ms", name="pause", after=[told])
    flow.task("math.double", 2, name="ship", delay="20ms", after=[paused])
    async with traced_fleet([doubler()], dispatcher=True) as scene:
        run = await scene.client.start(flow)
        await eventually(lambda: awaits_approval(run))
        await run.grant("ask", by="ada")
        await run.signal("go")
        await run.result(timeout="10s")
        await scene.settled("process coditect.results")
        (recorded,) = scene.spans.named("process coditect.control")
        waits = scene.spans.named("await")

    assert [(one.name, named(one)) for one in waits] == [
        ("await approval", (run.id, "release", "ask")),
        ("await signal", (run.id, "release", "told")),
        ("await time", (run.id, "release", "pause")),
        ("await time", (run.id, "release", "ship")),
    ]
    approval, _, *times = waits
    assert (attributes(approval)["coditect.approval.decision"], attributes(approval)["coditect.approval.by"]) == (
        "granted",
        "ada",
    )
    assert {parent_id(one) for one in waits} == {span_id(recorded)}
    assert all((one.end_time or 0) - (one.start_time or 0) >= 19_000_000 for one in times)


async def test_approval_that_is_canceled_with_its_workflow_is_a_span_without_a_decision() -> None:
    flow = Workflow("release")
    flow.approval("Ship it?", name="ask")
    async with traced_fleet([], dispatcher=True) as scene:
        run = await scene.client.start(flow)
        await eventually(lambda: awaits_approval(run))
        await run.cancel()
        await scene.settled("await approval")
        (approval,) = scene.spans.named("await")

    assert named(approval) == (run.id, "release", "ask")
    assert "coditect.approval.decision" not in attributes(approval)


async def test_lock_is_a_span_below_the_attempt_from_its_request_to_its_release() -> None:
    agent = Agent("writer", slots=4)

    @agent.capability("doc.write")
    async def write(value: int, ctx: Context) -> int:
        async with ctx.lock("doc:1", timeout="5s", reason="a secret release") as lock:
            await asyncio.sleep(0.02)
            with pytest.raises(LockTaken):
                async with ctx.lock("doc:1", wait=False):
                    pass
            return lock.fence

    flow = Workflow("writing")
    flow.task("doc.write", 1, name="first")
    flow.task("doc.write", 2, name="second")
    async with traced_fleet([agent], dispatcher=True) as scene:
        run = await scene.client.start(flow)
        fences = await run.result(timeout="10s")
        await scene.settled("lock", many=4)
        attempts = {span_id(one) for one in scene.spans.named("process coditect.submit:doc")}
        held = [one for one in scene.spans.named("lock") if "coditect.lock.fence" in attributes(one)]
        taken = [one for one in scene.spans.named("lock") if "coditect.lock.fence" not in attributes(one)]

    assert {attributes(one)["coditect.lock.fence"] for one in held} == set(fences.values())
    assert {parent_id(one) for one in (*held, *taken)} == attempts
    assert {named(one) for one in held} == {(run.id, "writing", "first"), (run.id, "writing", "second")}
    assert {attributes(one)["coditect.lock.resources"] for one in held} == {"doc:1"}
    first, second = held
    waited_ms = attributes(second)["coditect.lock.waited_ms"]
    assert isinstance(waited_ms, int)
    assert (second.start_time or 0) + 1_000_000 * (waited_ms + 1) >= (first.end_time or 0)
    assert [attributes(one)["error.type"] for one in taken] == 2 * ["LockTaken"]
    assert [one.status.description for one in taken] == 2 * ["Others have the lock"]


async def test_lock_of_a_concurrency_key_which_is_input_is_no_span() -> None:
    agent = Agent("builder")

    @agent.capability("repo.build", concurrency=("{input.repo}", 1))
    async def build(task: dict[str, str]) -> None:
        pass

    async with traced_fleet([agent], dispatcher=True) as scene:
        await scene.client.request("repo.build", {"repo": "secret"})
        await scene.settled("process coditect.submit:repo.build")

        assert not any("secret" in str(value) for one in scene.spans.all() for value in attributes(one).values())


async def test_span_of_a_lock_that_others_release_ends_when_it_is_granted() -> None:
    async with traced_fleet([], dispatcher=True) as scene:
        grant = await scene.client.locks.acquire("doc:1", by="ci")
        (lock,) = scene.spans.named("lock")

    assert attributes(lock)["coditect.lock.fence"] == grant.fence


async def test_lock_of_a_task_in_no_trace_is_no_span() -> None:
    agent = Agent("writer")

    @agent.capability("doc.write")
    async def write(value: int, ctx: Context) -> int:
        async with ctx.lock("doc:1") as lock:
            return lock.fence

    async with traced_fleet([agent], dispatcher=True, client_sampler=DEFAULT_OFF) as scene:
        assert await scene.client.request("doc.write", 1) > 0
        assert scene.spans.all() == ()


async def test_handoff_is_a_span_of_the_owner_and_the_next_attempt_links_back() -> None:
    first, second = Agent("first"), Agent("second")

    @first.capability("ticket.answer")
    async def answer(value: int, ctx: Context) -> str:
        refused = await ctx.hand_off("nobody.there")
        assert refused.state == "declined"
        await ctx.hand_off("ticket.billing", reason="billing")
        raise AssertionError("the other one has it")

    @second.capability("ticket.billing")
    async def bill(value: int) -> str:
        return "billed"

    flow = Workflow("ticket")
    flow.task("ticket.answer", 1, name="answer")
    async with traced_fleet([first, second], dispatcher=True) as scene:
        run = await scene.client.start(flow)
        assert await run.result(timeout="10s") == "billed"
        await scene.settled("hand off", many=2)
        await scene.settled("process coditect.results")
        declined, accepted = scene.spans.named("hand off")
        (attempt,) = scene.spans.named("process coditect.submit:ticket.answer")
        before, after = (one for one in scene.spans.named("publish") if "coditect.node_id" in attributes(one))

    assert [parent_id(one) for one in (declined, accepted)] == 2 * [span_id(attempt)]
    assert [attributes(one)["coditect.handoff.state"] for one in (declined, accepted)] == ["declined", "accepted"]
    assert attributes(accepted)["coditect.handoff.to"] == "ticket.billing"
    assert named(accepted) == (run.id, "ticket", "answer")
    assert list(linked(after)) == [span_id(before)]


async def test_log_line_of_a_handler_can_name_its_span(caplog: pytest.LogCaptureFixture) -> None:
    seen = list[dict[str, str]]()
    with caplog.at_level(logging.INFO):
        async with traced_fleet([doubler(seen)]) as scene:
            await scene.client.request("math.double", 1)
            await scene.settled(PROCESS)
            (process,) = scene.spans.named(PROCESS)

    assert seen == [{"trace_id": f"{context(process).trace_id:032x}", "span_id": f"{span_id(process):016x}"}]
    assert current_trace_ids() == {}
