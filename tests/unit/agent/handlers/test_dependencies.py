"""Dependencies of handlers: by default value or type, made anew for each task, closed after it, also in processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coditect import Agent, Context, Depends, PlainContext, Retry
from coditect.errors import SetupError, TaskFailed
from coditect.testing import TestFleet
from tests.support import eventually
from tests.unit.agent.handlers import lifespan_agent
from tests.unit.agent.scene import Scene

ONCE = Retry(max_attempts=1)


class Pool:
    def __init__(self) -> None:
        self.told: list[str] = []


class Session:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool


class Shop:
    """An agent with everything that a handler may ask for."""

    def __init__(self) -> None:
        self.pool = pool = Pool()

        @asynccontextmanager
        async def lifespan(agent: Agent) -> AsyncIterator[Pool]:
            yield pool

        self.agent = agent = Agent("shop", lifespan=lifespan)

        @agent.provider
        async def session(pool: Pool) -> AsyncIterator[Session]:
            pool.told.append("open")
            try:
                yield Session(pool)
            except ValueError:
                pool.told.append("roll back")
                raise
            finally:
                pool.told.append("close")

        def name(found: Session) -> str:
            found.pool.told.append("name")
            return "shop"

        async def length(shop: str = Depends(name)) -> int:
            return len(shop)

        @agent.capability("shop.loop", retry=ONCE)
        async def loop(
            fails: bool, ctx: Context, session: Session, *, shop: str = Depends(name), size: int = Depends(length)
        ) -> list[Any]:
            if fails:
                raise ValueError("no")
            pool.told.append("handler")
            return [shop, size, session.pool is pool, ctx.attempt]

        @agent.capability("shop.thread", retry=ONCE)
        def thread(
            fails: bool, session: Session, ctx: PlainContext, shop: str = Depends(name), size: int = Depends(length)
        ) -> list[Any]:
            if fails:
                raise ValueError("no")
            pool.told.append("handler")
            return [shop, size, session.pool is pool, ctx.attempt]


@pytest.mark.parametrize("capability", ["shop.loop", "shop.thread"])
async def test_each_provider_makes_one_value_for_a_task_which_is_closed_after_the_handler(capability: str) -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.agent]) as fleet:
        for _ in range(2):
            assert await fleet.request(capability, False) == ["shop", 4, True, 1]

    assert shop.pool.told == ["open", "name", "handler", "close"] * 2


@pytest.mark.parametrize("capability", ["shop.loop", "shop.thread"])
async def test_provider_hears_of_the_handler_s_error_and_closes(capability: str) -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.agent]) as fleet:
        with pytest.raises(TaskFailed, match="no"):
            await fleet.request(capability, True)

    assert shop.pool.told == ["open", "name", "roll back", "close"]


async def test_canceled_thread_closes_what_it_was_given(scene: Scene) -> None:
    told: list[str] = []
    agent = Agent("late", slots=4)

    async def resource() -> AsyncIterator[str]:
        try:
            yield "opened"
        finally:
            told.append("closed")

    @agent.capability("late.run", retry=ONCE)
    def run(_: None, ctx: PlainContext, what: str = Depends(resource)) -> None:
        told.append(what)
        ctx.request("late.sleep", None, timeout="1h")

    @agent.capability("late.sleep", retry=ONCE)
    async def sleep(_: None) -> None:
        await asyncio.Event().wait()

    await scene.start(agent)
    client = await scene.client()
    handle = await client.submit("late.run")
    await eventually(lambda: told == ["opened"])
    await handle.cancel()

    await eventually(lambda: told == ["opened", "closed"])


async def test_process_makes_and_closes_them_on_one_loop(
    scene: Scene, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lifespan_agent.JOURNAL, str(tmp_path / "journal"))
    running = await scene.start(lifespan_agent.agent)
    client = await scene.client()

    assert await client.request("span.given", 4, int, timeout="60s") == 5
    await running.stop()  # while the journal is there


async def needs_unknown(other: int) -> str:
    return ""


def not_closed(task: int, ctx: Context, other: int) -> None: ...
def of_unknown(task: int, other: str = Depends(needs_unknown)) -> None: ...


@pytest.mark.parametrize("handler", [not_closed, of_unknown])
def test_parameter_that_nothing_provides_is_refused_at_the_handler_s_line(handler: Any) -> None:
    with pytest.raises(SetupError) as caught:
        Agent("wrong").capability("wrong.one")(handler)

    assert str(caught.value.facts["at"]).startswith(__file__)
    assert "other" in str(caught.value)
    assert "Depends" in str(caught.value.facts["fix"])


def test_providers_in_a_circle_are_refused() -> None:
    def first(again: int) -> int:
        return again

    first.__defaults__ = (Depends(first),)

    def handler(task: int, one: int = Depends(first)) -> None: ...

    with pytest.raises(SetupError, match="circle"):
        Agent("wrong").capability("wrong.one")(handler)


def nothing_said(): ...  # type: ignore[no-untyped-def]
def alias() -> list[int]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize("provide", [nothing_said, alias])
def test_provider_without_a_type_by_which_to_find_it_is_refused_at_its_line(provide: Any) -> None:
    with pytest.raises(SetupError) as caught:
        Agent("wrong").provider(provide)

    assert str(caught.value.facts["at"]).startswith(__file__)
    assert caught.value.facts["fix"]


def test_second_provider_of_a_type_is_refused() -> None:
    agent = Agent("wrong")

    @agent.provider
    def first() -> Pool:
        return Pool()

    with pytest.raises(SetupError, match="by the type"):
        agent.provider(first)


def test_what_is_no_function_is_no_provider() -> None:
    with pytest.raises(SetupError, match="function"):
        Depends("open")  # type: ignore[arg-type] # on purpose
