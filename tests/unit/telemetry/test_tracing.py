"""Spans of tasks and workflows on the in-memory twins: names, kinds, attributes, one tree for each trace, links."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF
from opentelemetry.trace import SpanKind, StatusCode

from coditect import Agent, Context, Retry, Workflow
from coditect.aio.clock import SystemClock
from coditect.errors import TaskFailed
from coditect.model.message import Message
from coditect.operations.dead_letters.queues import DeadLetters, Selection
from coditect.telemetry.tracing.port import current_trace_ids
from coditect.wire import routing
from tests.unit.telemetry.tracing_scene import attributes, linked, traced_fleet

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

    assert process.parent is not None
    assert process.context is not None
    assert (process.parent.span_id, process.context.trace_id) == (9, 7)
    current, inner_headers = seen
    assert (current.trace_id, current.span_id) == (7, process.context.span_id)
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
        assert process.context is not None
        assert process.context.trace_id != 7


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

    assert first.context is not None
    assert (first.status.status_code, attributes(first)["error.type"]) == (StatusCode.ERROR, "OSError")
    assert first.status.description == "no such number"
    assert list(linked(second)) == [first.context.span_id]
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
    assert second.context is not None
    assert redrive.context is not None
    assert dead.parent is not None
    assert dead.parent.span_id == second.context.span_id
    assert list(linked(redrive)) == [second.context.span_id]
    assert third.parent is not None
    assert third.parent.span_id == redrive.context.span_id
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
        node = {one.context.span_id for one in spans.named("process coditect.control") if one.context}
        published = [one for one in spans.named("publish coditect") if one.parent and one.parent.span_id in node]

    assert len(spans.traces()) == 1
    assert [attributes(one)["coditect.node_id"] for one in published] == ["first", "second"]
    ((root, ((recorded, nodes),)),) = spans.trees()
    assert (root, recorded, len(nodes)) == ("publish coditect.control", "process coditect.control", 2)
    assert all("process coditect.results" in [name for name, _ in below] for _, below in nodes)
    inner = [name for _, below in nodes for process, deeper in below for name, _ in deeper]
    assert inner == [PUBLISH]  # what the handler of the first node asked for


async def test_retried_node_links_to_its_attempt_before() -> None:
    flow = Workflow("retried")
    flow.task("math.fail", 3, name="only")
    async with traced_fleet([failing(1)], dispatcher=True) as scene:
        run = await scene.client.start(flow)
        assert await run.result(timeout="10s") == 3
        await scene.settled("process coditect.results", many=2)

        first, second = (one for one in scene.spans.named("publish") if "coditect.node_id" in attributes(one))
        failed, done = scene.spans.named("process coditect.results")

    assert first.context is not None
    assert list(linked(first)) == []
    assert list(linked(second)) == [first.context.span_id]
    assert [attributes(one)["coditect.state"] for one in (failed, done)] == ["retry_wait", "completed"]
    assert len(scene.spans.traces()) == 1


async def test_log_line_of_a_handler_can_name_its_span(caplog: pytest.LogCaptureFixture) -> None:
    seen = list[dict[str, str]]()
    with caplog.at_level(logging.INFO):
        async with traced_fleet([doubler(seen)]) as scene:
            await scene.client.request("math.double", 1)
            await scene.settled(PROCESS)
            (process,) = scene.spans.named(PROCESS)

    assert process.context is not None
    assert seen == [{"trace_id": f"{process.context.trace_id:032x}", "span_id": f"{process.context.span_id:016x}"}]
    assert current_trace_ids() == {}
