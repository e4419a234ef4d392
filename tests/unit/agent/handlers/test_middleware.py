"""Middleware around tasks: its order, what it may change, and what passes through it, for handlers everywhere."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from coditect import Agent, CallNext, Context, MiddlewareContext, PlainContext, Retry, TaskCanceled, TaskFailed
from coditect.errors import SetupError, TaskRejected
from coditect.testing import TestFleet
from tests.unit.agent.handlers.middleware_agent import seen, worker
from tests.unit.agent.scene import Scene

ONCE = Retry(max_attempts=1)


def told(agent: Agent, name: str, log: list[str]) -> None:
    @agent.middleware
    async def tell(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        log.append(f"{name} before {ctx.input}")
        try:
            return await call_next(ctx)
        finally:
            log.append(f"{name} after")


async def test_first_middleware_is_outermost_also_where_it_is_declared_below_the_capability() -> None:
    log: list[str] = []

    async def given(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        log.append("given")
        return await call_next(ctx)

    agent = Agent("shop", middleware=[given])
    told(agent, "outer", log)

    @agent.capability("shop.price")
    async def price(thing: str) -> int:
        log.append("handler")
        return len(thing)

    told(agent, "inner", log)

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("shop.price", "tea") == 3

    assert log == ["given", "outer before tea", "inner before tea", "handler", "inner after", "outer after"]


async def test_middleware_answers_in_place_of_the_handler() -> None:
    agent = Agent("shop")
    calls: list[str] = []
    known: dict[str, int] = {}

    @agent.middleware
    async def cache(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        if ctx.input not in known:
            known[ctx.input] = await call_next(ctx)
        return known[ctx.input]

    @agent.capability("shop.price")
    async def price(thing: str) -> int:
        calls.append(thing)
        return len(thing)

    async with TestFleet(agents=[agent]) as fleet:
        assert [await fleet.request("shop.price", "tea") for _ in range(2)] == [3, 3]

    assert calls == ["tea"]


async def test_error_of_middleware_is_one_of_the_attempt_and_input_is_checked_before() -> None:
    agent = Agent("shop")
    inputs: list[Any] = []

    @agent.middleware
    async def refuse(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        inputs.append(ctx.input)
        if ctx.attempt == 1:
            raise OSError("not today")
        return await call_next(ctx)

    @agent.capability("shop.price", retry=Retry(max_attempts=2))
    async def price(thing: str) -> int:
        return len(thing)

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("shop.price", "tea") == 3
        with pytest.raises(TaskRejected):
            await fleet.request("shop.price", 7)

    assert inputs == ["tea", "tea"], "what does not fit the type never gets there"


@pytest.mark.parametrize("plain", [False, True])
async def test_cancellation_and_time_limit_pass_through_middleware(plain: bool) -> None:
    agent = Agent("shop")
    ended: list[str] = []
    began = asyncio.Event()

    @agent.middleware
    async def watch(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        try:
            return await call_next(ctx)
        except asyncio.CancelledError:
            ended.append(ctx.task_id)
            raise

    @agent.capability("shop.wait", timeout="5s", retry=ONCE)
    async def wait(_: None) -> None:
        began.set()
        await asyncio.sleep(60)

    @agent.capability("shop.wait.plain", timeout="5s", retry=ONCE)
    def plain_wait(_: None, ctx: PlainContext) -> None:
        ctx.request("shop.wait")

    async with TestFleet(agents=[agent]) as fleet:
        capability = "shop.wait.plain" if plain else "shop.wait"
        handle = await fleet.submit(capability)
        await asyncio.wait_for(began.wait(), 4)
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result()
        assert handle.task_id in ended
        late = await fleet.submit("shop.wait")
        with pytest.raises(TaskFailed) as failed:
            await late.result()
        assert failed.value.facts["reason"] == "timeout"
        assert late.task_id in ended


async def test_request_of_middleware_and_equal_one_of_the_handler_are_two_children() -> None:
    agent = Agent("shop")
    children: list[str] = []

    @agent.middleware
    async def ask(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        if ctx.capability == "shop.ask":
            await ctx.request("shop.price", "tea")
            (ctx.workspace / "note").write_text("from outside")
        return await call_next(ctx)

    @agent.capability("shop.price")
    async def price(thing: str, ctx: Context) -> int:
        children.append(ctx.task_id)
        return len(thing)

    @agent.capability("shop.ask")
    async def asks(_: None, ctx: Context) -> str:
        await ctx.request("shop.price", "tea")
        return (ctx.workspace / "note").read_text()

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("shop.ask") == "from outside"

    assert len(set(children)) == 2


async def test_middleware_runs_in_the_agent_around_a_handler_in_its_process(scene: Scene) -> None:
    client = await scene.serve(worker)

    pid, text = await client.request("middle.process", "tea")

    assert pid != os.getpid()
    assert (text, seen) == ("Point(x=5, y=0)", [os.getpid()])


async def one_parameter(ctx: MiddlewareContext) -> None: ...


async def exchanged(call_next: CallNext, ctx: MiddlewareContext) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda ctx, call_next: None, "async def middleware"),
        (7, "async def middleware"),
        (exchanged, "the context and the next call"),
        (one_parameter, "the context and the next call"),
    ],
)
def test_wrong_middleware_is_refused_with_its_line(wrong: Any, sentence: str) -> None:
    for declare in (Agent("shop").middleware, lambda wrong: Agent("shop", middleware=[wrong])):
        with pytest.raises(SetupError, match=sentence) as refused:
            declare(wrong)
        assert __file__ in str(refused.value)


async def price(thing: str, ctx: Context) -> int:
    return len(thing)


def plain_price(thing: str, ctx: PlainContext) -> int:
    return len(thing)


@pytest.mark.parametrize(("handler", "process"), [(price, False), (plain_price, False), (plain_price, True)])
async def test_middleware_changes_input_and_result_of_every_kind_of_handler(handler: Any, process: bool) -> None:
    agent = Agent("shop")

    @agent.middleware
    async def change(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        ctx.input = f"{ctx.input}{ctx.attempt}"
        return 10 * await call_next(ctx)

    agent.capability("shop.price", process=process)(handler)

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("shop.price", "tea") == 40
