"""What is around a handler: the lifespan of its agent, dependencies, and middleware, in processes too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, CallNext, Context, Depends, MiddlewareContext, PlainContext, Retry, TaskCanceled, TaskFailed
from coditect.agent.signature import lived
from coditect.errors import NotFound, SetupError, TaskRejected
from coditect.testing import FleetCrashed, TestFleet
from tests.support import eventually
from tests.unit.agent import lifespan_agents
from tests.unit.agent.process_agent import ERRORS, measured_in, measuring
from tests.unit.agent.scene import Scene, failure_of


class Story:
    """An agent with a lifespan, and what happened in which order."""

    def __init__(
        self, *, broken_at: str = "", error: Callable[[], BaseException] = lambda: ConnectionError("no database")
    ) -> None:
        self.told: list[str] = []
        self.error = error

        @asynccontextmanager
        async def lifespan(agent: Agent) -> AsyncIterator[dict[str, str]]:
            self._tell("start", broken_at)
            yield {"name": agent.name}
            self._tell("stop", broken_at)

        self.agent = Agent("story", lifespan=lifespan)

        @self.agent.capability("story.loop")
        async def loop(_: None, ctx: Context) -> str:
            await asyncio.sleep(1)
            self.told.append("task")
            return str(ctx.lifespan["name"])

        @self.agent.capability("story.thread")
        def thread(_: None, ctx: PlainContext) -> str:
            return str(ctx.lifespan["name"])

    def _tell(self, what: str, broken_at: str) -> None:
        self.told.append(what)
        if what == broken_at:
            raise self.error()


@pytest.mark.parametrize("capability", ["story.loop", "story.thread"])
async def test_handler_finds_the_value_of_the_lifespan(capability: str) -> None:
    async with TestFleet(agents=[Story().agent]) as fleet:
        assert await fleet.request(capability, None, str) == "story"


async def test_stop_runs_after_the_drain_has_ended_the_last_task() -> None:
    story = Story()
    async with TestFleet(agents=[story.agent]) as fleet:
        handle = await fleet.submit("story.loop")
        await fleet.settled()
        await fleet.drain("story")
        await handle.result()

    assert story.told == ["start", "task", "stop"]


@pytest.mark.parametrize("moment", ["start", "stop"])
async def test_lifespan_that_fails_ends_the_agent_with_an_error_that_names_its_line(moment: str) -> None:
    story = Story(broken_at=moment)
    with pytest.raises((SetupError, FleetCrashed)) as caught:
        async with TestFleet(agents=[story.agent]) as fleet:
            await fleet.drain("story")

    error = caught.value.exceptions[0] if isinstance(caught.value, FleetCrashed) else caught.value
    assert isinstance(error, SetupError)
    assert f"failed at its {moment}" in error.sentence
    facts = error.facts
    assert (facts["agent"], facts["reason"]) == ("story", "ConnectionError: no database")
    assert str(facts["at"]).startswith(__file__)
    assert facts["fix"]


@pytest.mark.parametrize("moment", ["start", "stop"])
async def test_whatever_a_lifespan_raises_is_a_setup_error_that_names_it(moment: str) -> None:
    for make in ERRORS:
        story = Story(broken_at=moment, error=make)
        with pytest.raises(SetupError) as caught:
            async with lived(story.agent.lifespan, story.agent):
                pass

        assert f"failed at its {moment}" in caught.value.sentence
        assert type(caught.value.__cause__).__name__ == type(make()).__name__
        assert len(str(caught.value.facts["reason"])) < 3_000


@pytest.mark.parametrize("moment", ["start", "stop"])
async def test_cancellation_of_the_program_passes_through_its_lifespan(moment: str) -> None:
    @asynccontextmanager
    async def lifespan(_: Agent) -> AsyncIterator[None]:
        if moment == "start":
            await asyncio.sleep(60)
        yield
        await asyncio.sleep(60)

    async def live() -> None:
        async with lived(lifespan, Agent("slow")):
            pass

    living = asyncio.ensure_future(live())
    await asyncio.sleep(0.01)
    living.cancel()
    with pytest.raises(asyncio.CancelledError):
        await living


async def test_agent_whose_lifespan_fails_never_offers_anything() -> None:
    story = Story(broken_at="start")
    async with TestFleet() as fleet:
        with pytest.raises(SetupError):
            await fleet.add(story.agent)

        assert "agent.online" not in {event.type for event in fleet.events}
        with pytest.raises(NotFound):
            fleet.server.queue("tasks.story.loop.p1")


async def test_each_process_has_a_lifespan_and_dependencies_of_its_own_on_one_loop_and_closes_them(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    monkeypatch.setenv(lifespan_agents.JOURNAL, str(journal))
    running = await scene.start(lifespan_agents.agent)

    found = [await scene.request(f"span.{kind}", None, int, timeout="60s") for kind in ("async", "async", "plain")]
    found.append(await scene.request("span.given", 4, int, timeout="60s"))
    await running.stop()

    assert found == [1, 2, 1, 5]
    lines = journal.read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == ["start"] * 4 + ["stop"] * 4
    assert len({line.split()[1] for line in lines}) == 4, "the agent and a process for each of three capabilities"


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


async def test_provider_that_catches_the_end_of_the_time_does_not_undo_it_and_others_hear_of_it() -> None:
    agent, heard = Agent("late"), []

    async def outer() -> AsyncIterator[str]:
        try:
            yield "outer"
        except BaseException as error:
            heard.append(type(error))
            raise

    async def inner(what: str = Depends(outer)) -> AsyncIterator[str]:
        with suppress(BaseException):
            yield what

    @agent.capability("late.sleep", timeout="5s", retry=ONCE)
    async def sleep(_: None, what: str = Depends(inner)) -> None:
        await asyncio.sleep(100)

    async with TestFleet(agents=[agent]) as fleet:
        failure = await failure_of(await fleet.submit("late.sleep"))

    assert (failure.reason, heard) == ("timeout", [asyncio.CancelledError])


@pytest.mark.parametrize("fails", [False, True])
async def test_provider_that_yields_twice_fails_the_attempt(fails: bool) -> None:
    agent = Agent("twice")

    async def provider() -> AsyncIterator[int]:
        with suppress(ValueError):
            yield 1
        yield 2

    @agent.capability("twice.run", retry=ONCE)
    async def run(_: None, what: int = Depends(provider)) -> None:
        if fails:
            raise ValueError("no")

    async with TestFleet(agents=[agent]) as fleet:
        failure = await failure_of(await fleet.submit("twice.run"))

    assert "yields once" in failure.message
    assert ("ValueError: no" in failure.traceback) == fails


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
    await scene.start(measuring)

    pid, text = await scene.request("middle.process", "tea")

    assert pid != os.getpid()
    assert (text, measured_in) == ("Point(x=5, y=0)", [os.getpid()])


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
