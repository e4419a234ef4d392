"""What a handler may be, and what becomes of what it does."""

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

from coditect import Agent, Context, Retry
from coditect.errors import SetupError, TaskFailed, TaskRejected
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.wire import routing
from coditect.wire.json import loads
from coditect.wire.tasks import TASK_TYPE
from tests.support import eventually
from tests.unit.agent.scene import Scene

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


async def failed(scene: Scene, agent: Agent, capability: str, value: Any = None) -> TaskFailed:
    await scene.start(agent)
    client = await scene.client()
    with pytest.raises(TaskFailed) as caught:
        await client.request(capability, value, timeout="10s")
    return caught.value


async def test_pydantic_models_go_in_and_out(scene: Scene) -> None:
    agent = Agent("shop")

    @agent.capability("shop.buy")
    async def buy(order: Order) -> Receipt:
        return Receipt(total=order.count * 2)

    await scene.start(agent)
    client = await scene.client()

    assert await client.request("shop.buy", Order(item="pen", count=3), Receipt) == Receipt(total=6)
    assert await client.request("shop.buy", {"item": "pen"}) == {"total": 2}


async def test_dataclasses_go_in_and_out(scene: Scene) -> None:
    agent = Agent("geometry")

    @agent.capability("point.mirror")
    async def mirror(point: Point) -> Point:
        return Point(point.y, point.x)

    await scene.start(agent)
    client = await scene.client()

    assert await client.request("point.mirror", Point(1, 2), Point) == Point(2, 1)


@pytest.mark.parametrize("value", [None, 1, 1.5, "text", [1, [2]], {"a": {"b": None}}, True])
async def test_handler_without_annotations_takes_any_json(scene: Scene, value: Any) -> None:
    agent = Agent("plain")

    @agent.capability("plain.echo")
    async def echo(task):  # type: ignore[no-untyped-def]
        return task

    await scene.start(agent)
    client = await scene.client()

    assert await client.request("plain.echo", value) == value


async def test_bytes_are_taken_as_json_already(scene: Scene) -> None:
    agent = Agent("plain")

    @agent.capability("plain.echo")
    async def echo(task: Any) -> Any:
        return task

    await scene.start(agent)
    client = await scene.client()

    assert await client.request("plain.echo", b'{"as": "it is"}') == {"as": "it is"}


async def test_plain_function_runs_in_a_thread(scene: Scene) -> None:
    agent = Agent("threaded", slots=4)
    barrier = threading.Barrier(3, timeout=5)

    @agent.capability("thread.meet")
    def meet(_: None) -> str:
        barrier.wait()  # three at once, and none of them on the event loop
        return threading.current_thread().name

    await scene.start(agent)
    client = await scene.client()

    names = await asyncio.gather(*(client.request("thread.meet", None, str) for _ in range(3)))

    assert len(set(names)) == 3
    assert all(name.startswith("threaded") for name in names)


@pytest.mark.parametrize("process", [False, True])
def test_wrong_signature_is_refused_at_once(process: bool) -> None:
    agent = Agent("wrong")

    def none() -> None: ...
    def three(a: int, b: int, c: int) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def unfit(a: threading.Lock) -> None: ...

    for handler in (none, three, unknown, unfit):
        with pytest.raises(SetupError):
            agent.capability("wrong.one", process=process)(handler)


def test_declaration_refuses_what_cannot_work() -> None:
    agent = Agent("wrong")
    agent.capability("right.one")(lambda task: task)

    with pytest.raises(SetupError, match="once"):
        agent.capability("right.one")
    with pytest.raises(SetupError, match="7d"):
        agent.capability("slow.one", timeout="8d")
    with pytest.raises(SetupError, match="lower-case"):
        Agent("Not A Name")
    with pytest.raises(SetupError, match="slots"):
        Agent("name", slots=0)


async def test_input_that_does_not_fit_is_rejected_and_becomes_a_dead_letter(scene: Scene) -> None:
    agent = Agent("shop")
    ran = False

    @agent.capability("shop.buy")
    async def buy(order: Order) -> None:
        nonlocal ran
        ran = True

    await scene.start(agent)
    client = await scene.client()

    with pytest.raises(TaskRejected, match="item: Field required"):
        await client.request("shop.buy", {"count": "many"})

    assert not ran
    letter = await scene.dead_letter("shop.buy")
    assert letter.body == b'{"count":"many"}'
    assert letter.headers["x-coditect-reason"] == "invalid_input"
    assert letter.headers["x-coditect-agent"].startswith("shop-")


async def test_refusal_of_an_input_is_told_behind_the_start(scene: Scene) -> None:
    agent = Agent("shop")

    @agent.capability("shop.buy")
    async def buy(order: Order) -> None: ...

    await scene.start(agent)
    client = await scene.client()

    async with client.events("task.*") as events, asyncio.timeout(60):
        handle = await client.submit("shop.buy", {"count": "many"})
        first = last = await anext(events)
        while last.type != "task.rejected":  # beside it comes that there is a dead letter
            last = await anext(events)

    assert (first.type, first.subject, last.subject) == ("task.started", handle.task_id, handle.task_id)


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
    agent = Agent("plain")

    @agent.capability("plain.echo")
    async def echo(task: int) -> int:
        return task

    await scene.start(agent)
    client = await scene.client()
    broker = await scene.broker()
    answers: list[Outcome] = []
    client._requests.expect(message.message_id or "").add_done_callback(lambda one: answers.append(one.result()))

    await broker.publish(
        replace(message, reply_to=client._requests.reply_to, correlation_id=message.message_id),
        exchange=routing.TASKS,
        routing_key="plain.echo.p1",
    )

    await eventually(lambda: answers)
    await eventually(lambda: scene.dead("plain.echo") == 1)
    assert (await scene.dead_letter("plain.echo")).headers["x-coditect-reason"] == reason
    assert await client.request("plain.echo", 1) == 1, "the consumer goes on"
    await scene.acked("plain.echo")


async def test_exception_comes_back_with_type_message_and_traceback(scene: Scene) -> None:
    agent = Agent("failing")

    @agent.capability("fail.now", retry=ONCE)
    async def fail(_: None) -> None:
        raise LookupError("nothing there")

    error = await failed(scene, agent, "fail.now")

    assert (error.facts["type"], error.facts["message"]) == ("LookupError", "nothing there")
    note = error.__notes__[0]
    assert 'raise LookupError("nothing there")' in note
    assert "execute.py" not in note, "the runtime's own frames are left out"
    letter = await scene.dead_letter("fail.now")
    assert loads(letter.headers["x-coditect-error"].encode())["message"] == "nothing there"


class Abrupt(BaseException):
    """No Exception."""


@pytest.mark.parametrize(
    "error", [SystemExit(3), Abrupt("no Exception"), asyncio.CancelledError(), TimeoutError("own")]
)
@pytest.mark.parametrize("threaded", [False, True])
async def test_whatever_a_handler_raises_is_only_its_failure(
    scene: Scene, error: BaseException, threaded: bool
) -> None:
    agent = Agent("abrupt")

    async def on_loop(_: None) -> None:
        raise error

    def in_thread(_: None) -> None:
        raise error

    agent.capability("end.badly", retry=ONCE)(in_thread if threaded else on_loop)

    caught = await failed(scene, agent, "end.badly")

    assert caught.facts["type"] == type(error).__name__
    assert caught.facts["reason"] == "handler_error"


async def test_value_over_the_limit_is_a_failure_with_a_way_out(scene: Scene) -> None:
    agent = Agent("large")

    @agent.capability("give.much")
    async def much(_: None) -> str:
        return "x" * 2_000_000

    error = await failed(scene, agent, "give.much")

    assert (error.facts["reason"], error.facts["attempt"]) == ("result_too_large", 1)
    assert "reference" in str(error.facts["fix"])


async def test_value_that_does_not_fit_its_own_type_is_a_failure(scene: Scene) -> None:
    agent = Agent("liar")

    @agent.capability("give.wrong", retry=ONCE)
    async def wrong(_: None) -> Receipt:
        return "no receipt"  # type: ignore[return-value]

    assert (await failed(scene, agent, "give.wrong")).facts["type"] == "InvalidTask"


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

    await scene.start(agent, workspace=str(tmp_path))
    client = await scene.client()

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
    client = await scene.client()
    handle = await client.submit("tell.all")

    assert await handle.result(timeout="100s") == [handle.task_id, running.agent_id, 1, 1, "tell.all", "p1", None]


async def test_foreign_message_without_an_id_is_done_and_answered(scene: Scene) -> None:
    agent = Agent("plain")

    @agent.capability("plain.echo")
    async def echo(task: Any, ctx: Context) -> list[Any]:
        return [task, bool(ctx.task_id)]

    await scene.start(agent)
    client = await scene.client()
    broker = await scene.broker()
    reply = client._requests.expect("mine")

    await broker.publish(
        Message(b'"bare"', correlation_id="mine", reply_to=client._requests.reply_to),
        exchange=routing.TASKS,
        routing_key="plain.echo",
    )

    outcome = await asyncio.wait_for(reply, 60)
    assert (loads(outcome.body), outcome.task_id) == (["bare", True], None)


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

    error = await failed(scene, agent, "shop.lie", "x")

    assert "does not fit the schema" in str(error)
    assert len(calls) == 1
