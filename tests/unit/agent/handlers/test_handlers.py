"""What a handler may be, what becomes of what it does, and bytes as its input and value."""

from __future__ import annotations

import asyncio
import sys
import threading
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from coditect import Agent, Context, Retry, TaskFailed, TaskRejected, Workflow
from coditect.errors import InputError, InvalidTask, SetupError
from coditect.model.message import Message
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.json import loads
from coditect.wire.tasks import TASK_TYPE
from tests.owner import ScriptedOwner
from tests.support import eventually
from tests.unit.agent.process_agent import packer
from tests.unit.agent.scene import Scene, answers, failure_of
from tests.unit.agent.workflow_tasks.works import failure_reported

ONCE = Retry(max_attempts=1)


class Order(BaseModel):
    item: str
    count: int = 1


class Receipt(BaseModel):
    total: int


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int


async def test_models_and_dataclasses_go_in_and_out(scene: Scene) -> None:
    agent = Agent("shop")

    @agent.capability("shop.buy")
    async def buy(order: Order) -> Receipt:
        return Receipt(total=order.count * 2)

    @agent.capability("point.mirror")
    async def mirror(point: Point) -> Point:
        return Point(point.y, point.x)

    client = await scene.serve(agent)

    assert await client.request("shop.buy", Order(item="pen", count=3), Receipt) == Receipt(total=6)
    assert await client.request("shop.buy", {"item": "pen"}) == {"total": 2}
    assert await client.request("point.mirror", Point(1, 2), Point) == Point(2, 1)


async def test_handler_without_annotations_takes_any_json(scene: Scene) -> None:
    client = await scene.serve(echoing())

    for value in (None, 1, 1.5, "text", [1, [2]], {"a": {"b": None}}, True):
        assert await client.request("plain.echo", value) == value
    assert await client.request("plain.echo", b'{"as": "it is"}') == {"as": "it is"}


def echoing() -> Agent:
    agent = Agent("plain")

    @agent.capability("plain.echo")
    async def echo(task):  # type: ignore[no-untyped-def]
        return task

    return agent


async def test_plain_function_runs_in_a_thread(scene: Scene) -> None:
    agent = Agent("threaded", slots=4)
    barrier = threading.Barrier(3, timeout=5)

    @agent.capability("thread.meet")
    def meet(_: None) -> str:
        barrier.wait()  # three at once, and none of them on the event loop
        return threading.current_thread().name

    client = await scene.serve(agent)

    names = await asyncio.gather(*(client.request("thread.meet", None, str) for _ in range(3)))

    assert len(set(names)) == 3
    assert all(name.startswith("threaded") for name in names)


async def test_input_that_does_not_fit_is_rejected_behind_its_start_and_becomes_a_dead_letter(scene: Scene) -> None:
    agent, ran = Agent("shop"), list[Order]()

    @agent.capability("shop.buy")
    async def buy(order: Order) -> None:
        ran.append(order)

    client = await scene.serve(agent)

    async with client.events("task.*") as events, asyncio.timeout(60):
        with pytest.raises(TaskRejected, match="item: Field required"):
            await client.request("shop.buy", {"count": "many"})
        first = last = await anext(events)
        while last.type != "task.rejected":  # beside it comes that there is a dead letter
            last = await anext(events)

    assert (first.type, first.subject, ran) == ("task.started", last.subject, [])
    letter = await scene.dead_letter("shop.buy")
    assert letter.body == b'{"count":"many"}'
    assert letter.headers["x-coditect-reason"] == "invalid_input"
    assert letter.headers["x-coditect-agent"].startswith("shop-")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message(b"{", message_id="a", type=TASK_TYPE), "invalid_input"),
        (Message(b"\xff\xfe", message_id="b"), "invalid_input"),
        (Message(b"1", message_id="c", type="coditect.task.v9"), "invalid_task"),
        (Message(b"1", {"x-coditect-attempt": "many"}, message_id="d"), "invalid_task"),
        (Message(b"1", {"x-coditect-errors": "[" * 9_000}, message_id="e"), "invalid_task"),
        (Message(b" " * (1024 * 1024 + 1), message_id="f"), "too_large"),
    ],
)
async def test_message_that_is_no_task_is_refused_with_the_reason(scene: Scene, message: Message, reason: str) -> None:
    client, broker = await scene.serve(echoing()), await scene.broker()
    arrived = await answers(broker)

    message = replace(message, reply_to="answers", correlation_id=message.message_id)
    await broker.publish(message, exchange=routing.TASKS, routing_key="plain.echo.p1")

    await eventually(lambda: arrived and scene.dead("plain.echo") == 1)
    assert (await scene.dead_letter("plain.echo")).headers["x-coditect-reason"] == reason
    assert await client.request("plain.echo", 1) == 1, "the consumer goes on"
    await scene.acked("plain.echo")


async def test_exception_comes_back_with_type_message_and_traceback(scene: Scene) -> None:
    agent = Agent("failing")

    @agent.capability("fail.now", retry=ONCE)
    async def fail(_: None) -> None:
        raise LookupError("nothing there")

    failure = await failure_of(await (await scene.serve(agent)).submit("fail.now"))

    assert (failure.type, failure.message) == ("LookupError", "nothing there")
    assert 'raise LookupError("nothing there")' in failure.traceback
    assert "/coditect/agent/" not in failure.traceback, "the runtime's own frames are left out"
    letter = await scene.dead_letter("fail.now")
    assert loads(letter.headers["x-coditect-error"].encode())["message"] == "nothing there"


async def test_value_over_the_limit_is_a_failure_with_a_way_out(scene: Scene) -> None:
    agent = Agent("large")

    @agent.capability("give.much")
    async def much(_: None) -> str:
        return "x" * 2_000_000

    outcome = await (await (await scene.serve(agent)).submit("give.much")).outcome(timeout="100s")

    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.attempt) == ("result_too_large", 1)
    assert "reference" in outcome.failure.fix


async def test_workspace_is_the_task_s_own_and_gone_after_it(scene: Scene, tmp_path: Path) -> None:
    agent = Agent("writer")
    seen: list[bool] = []

    @agent.capability("write.note", retry=ONCE)
    async def write(fail: bool, ctx: Context) -> str:
        (ctx.workspace / "note").write_text("here")
        seen.append((ctx.workspace / "note").exists())
        if fail:
            raise ValueError
        return str(ctx.workspace)

    client = await scene.serve(agent, workspace=str(tmp_path))

    folders = {await client.request("write.note", False, str) for _ in range(2)}
    with pytest.raises(TaskFailed):
        await client.request("write.note", True)

    assert len(folders) == 2
    assert seen == [True] * 3
    assert list(tmp_path.iterdir()) == []


async def test_context_tells_what_the_task_is(scene: Scene) -> None:
    agent = Agent("curious")

    @agent.capability("tell.all")
    async def tell(_: None, ctx: Context) -> list[Any]:
        return [ctx.task_id, ctx.agent_id, ctx.attempt, ctx.fence, ctx.capability, ctx.priority, ctx.deadline_ms]

    running = await scene.start(agent)
    handle = await scene.submit("tell.all")

    assert await handle.result(timeout="100s") == [handle.task_id, running.agent_id, 1, 1, "tell.all", "p1", None]


async def test_foreign_message_without_an_id_is_done_and_answered(scene: Scene) -> None:
    agent = Agent("plain")

    @agent.capability("plain.echo")
    async def echo(task: Any, ctx: Context) -> list[Any]:
        return [task, bool(ctx.task_id)]

    await scene.start(agent)
    broker = await scene.broker()
    arrived = await answers(broker)

    message = Message(b'"bare"', correlation_id="mine", reply_to="answers")
    await broker.publish(message, exchange=routing.TASKS, routing_key="plain.echo")

    await eventually(lambda: arrived)
    assert (loads(arrived[0].message.body), arrived[0].message.correlation_id) == (["bare", True], "mine")


class Wanted(typing.TypedDict):
    item: str


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic takes it from there on")
def test_typed_dict_of_an_old_python_is_refused_with_the_one_to_take() -> None:
    agent = Agent("shop")

    with pytest.raises(SetupError, match="typing_extensions"):

        @agent.capability("shop.want")
        async def want(order: Wanted) -> None:
            """Wants something."""


async def test_result_that_does_not_fit_is_not_tried_again(scene: Scene) -> None:
    agent, calls = Agent("shop"), []

    @agent.capability("shop.lie", retry=Retry(max_attempts=3, first="10ms"))
    async def lie(_: str) -> Receipt:
        calls.append(1)
        return "no receipt"  # type: ignore[return-value]  # what is tested

    failure = await failure_of(await (await scene.serve(agent)).submit("shop.lie", "x"))

    assert (failure.type, "does not fit the schema" in failure.message) == ("InvalidTask", True)
    assert len(calls) == 1


NO_TEXT = b"\xff\x00{"


@pytest.mark.parametrize("kind", ["loop", "thread", "process", "ask", "ask.process"])
async def test_bytes_come_and_go_as_they_are(scene: Scene, kind: str) -> None:
    client = await scene.serve(packer)

    handle = await client.submit(f"bytes.{kind}", NO_TEXT)

    assert await handle.result(timeout="60s") in (NO_TEXT, NO_TEXT[::-1])
    assert (await handle.outcome()).binary


async def test_input_and_value_are_chosen_one_by_one() -> None:
    async with TestFleet(agents=[packer]) as fleet:
        assert await fleet.request("bytes.size", NO_TEXT) == 3
        assert await fleet.request("bytes.make", 2) == b"\xff\xff"
        assert await fleet.request("bytes.size", NO_TEXT, bytes) == b"3", "the body of JSON, as it came"
        values = [await one.result() async for one in fleet.client.submit_many("bytes.loop", [b"ab", b"cd"])]
        assert values == [b"ba", b"dc"]


async def test_value_that_is_not_bytes_fails() -> None:
    async with TestFleet(agents=[packer]) as fleet:
        with pytest.raises(TaskFailed, match="The value is not bytes"):
            await fleet.request("bytes.wrong")


async def test_bytes_over_the_limit_of_a_message_go_through_the_blob_store(tmp_path: Path) -> None:
    large = bytes(range(256)) * 5_000
    async with TestFleet(agents=[packer], settings=Settings(blob_url=f"file://{tmp_path}")) as fleet:
        assert await fleet.request("bytes.loop", large) == large[::-1]


async def test_foreign_client_needs_no_header_and_reads_the_content_type(scene: Scene) -> None:
    client = await scene.serve(packer)
    assert await client.request("bytes.size", b"") == 0
    broker = await scene.broker()
    arrived = await answers(broker)

    for capability, body in (("bytes.loop", NO_TEXT), ("bytes.size", NO_TEXT), ("bytes.wrong", b"null")):
        message = Message(body, correlation_id=capability, reply_to="answers", content_type=None)
        await broker.publish(message, exchange=routing.SUBMIT, routing_key=f"{capability}.p1", timeout_seconds=5)
    await eventually(lambda: len(arrived) == 3)

    told = {one.message.correlation_id: (one.message.content_type, one.message.body[:3]) for one in arrived}
    assert told == {
        "bytes.loop": ("application/octet-stream", NO_TEXT[::-1]),
        "bytes.size": ("application/json", b"3"),
        "bytes.wrong": ("application/json", b'{"r'),
    }


async def test_workflow_and_durable_task_refuse_bytes_as_they_are_submitted() -> None:
    flow = Workflow("pack")
    flow.task("bytes.size", "text")
    async with TestFleet(agents=[packer]) as fleet:
        with pytest.raises(InputError, match=r"passes JSON on.*bytes\.size.*direct task"):
            await fleet.start(flow)
        with pytest.raises(InputError, match=r"passes JSON on.*bytes\.make"):
            await fleet.submit("bytes.make", 3, durable=True)
        with pytest.raises(InvalidTask, match="the input of a durable task is JSON"):
            await fleet.submit("bytes.size", NO_TEXT, durable=True)


async def test_workflow_submitted_without_a_registry_is_rejected_by_the_agent() -> None:
    async with TestFleet(agents=[packer]) as fleet:
        fleet.registry.failing = True
        handle = await fleet.submit("bytes.size", "text", durable=True)
        with pytest.raises(TaskRejected, match="direct task"):
            await handle.result()


async def test_agent_rejects_a_workflow_task_and_never_runs_it(scene: Scene, owner: ScriptedOwner) -> None:
    await scene.start(packer)

    await owner.publish("bytes.make", 3)

    assert (await failure_reported(owner)).reason == "invalid_input"
    assert not owner.results[0].outcome.binary
