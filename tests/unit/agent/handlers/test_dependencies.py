"""Dependencies of handlers: by default value or type, made anew for each task, closed after it, also in processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
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


def name(found: Session) -> str:
    found.pool.told.append("name")
    return "shop"


async def length(shop: str = Depends(name)) -> int:
    return len(shop)


class Shop:
    """An agent with everything that a handler may ask for."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.agent = Agent("shop", lifespan=self.lifespan)
        self.agent.provider(self.session)
        self.agent.capability("shop.loop", retry=ONCE)(self.loop)
        self.agent.capability("shop.thread", retry=ONCE)(self.thread)

    @asynccontextmanager
    async def lifespan(self, agent: Agent) -> AsyncIterator[Pool]:
        yield self.pool

    async def session(self, pool: Pool) -> AsyncIterator[Session]:
        pool.told.append("open")
        try:
            yield Session(pool)
        except ValueError:
            pool.told.append("roll back")
            raise
        finally:
            pool.told.append("close")

    async def loop(
        self, fails: bool, ctx: Context, session: Session, *, shop: str = Depends(name), size: int = Depends(length)
    ) -> list[Any]:
        return self.sold(fails, session, [shop, size, ctx.attempt])

    def thread(
        self, fails: bool, session: Session, ctx: PlainContext, shop: str = Depends(name), size: int = Depends(length)
    ) -> list[Any]:
        return self.sold(fails, session, [shop, size, ctx.attempt])

    def sold(self, fails: bool, session: Session, found: list[Any]) -> list[Any]:
        if fails:
            raise ValueError("no")
        self.pool.told.append("handler")
        return [*found, session.pool is self.pool]


@pytest.mark.parametrize("capability", ["shop.loop", "shop.thread"])
async def test_each_provider_makes_one_value_for_a_task_which_hears_of_its_end_and_closes(capability: str) -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.agent]) as fleet:
        for _ in range(2):
            assert await fleet.request(capability, False) == ["shop", 4, 1, True]
        with pytest.raises(TaskFailed, match="no"):
            await fleet.request(capability, True)

    assert shop.pool.told == ["open", "name", "handler", "close"] * 2 + ["open", "name", "roll back", "close"]


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

    client = await scene.serve(agent)
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


def nothing_said(): ...  # type: ignore[no-untyped-def]
def alias() -> list[int]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize("provide", [nothing_said, alias])
def test_provider_without_a_type_by_which_to_find_it_is_refused_at_its_line(provide: Any) -> None:
    with pytest.raises(SetupError) as caught:
        Agent("wrong").provider(provide)

    assert str(caught.value.facts["at"]).startswith(__file__)
    assert caught.value.facts["fix"]


def circle(inner: int) -> int:
    return inner


circle.__defaults__ = (Depends(circle),)


def circular(task: int, outer: int = Depends(circle)) -> None: ...


@pytest.mark.parametrize(
    ("declare", "sentence"),
    [
        (lambda agent: agent.capability("wrong.one")(circular), "circle"),
        (lambda agent: [agent.provider(Pool) for _ in range(2)], "by the type"),
        (lambda _: Depends("open"), "function"),  # type: ignore[arg-type] # on purpose
    ],
)
def test_provider_that_cannot_be_meant_is_refused(declare: Callable[[Agent], object], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        declare(Agent("wrong"))
