"""`Agent(lifespan=...)`: opened before the first task, closed after the drain, reachable in every handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, Context, PlainContext
from coditect.errors import NotFound, SetupError
from coditect.testing import FleetCrashed, TestFleet
from tests.unit.agent.handlers import lifespan_agent
from tests.unit.agent.scene import Scene


class Story:
    """An agent with a lifespan, and what happened in which order."""

    def __init__(self, *, broken_at: str = "") -> None:
        self.told: list[str] = []

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
            raise ConnectionError("no database")


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


async def test_agent_whose_lifespan_fails_never_offers_anything() -> None:
    story = Story(broken_at="start")
    async with TestFleet() as fleet:
        with pytest.raises(SetupError):
            await fleet.add(story.agent)

        assert "agent.online" not in {event.type for event in fleet.events}
        with pytest.raises(NotFound):
            fleet.server.queue("tasks.story.loop.p1")


async def test_each_process_has_a_lifespan_of_its_own_on_one_loop_and_closes_it_with_the_agent(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    monkeypatch.setenv(lifespan_agent.JOURNAL, str(journal))
    running = await scene.start(lifespan_agent.agent)
    client = await scene.client()

    found = [await client.request(f"span.{kind}", None, int, timeout="60s") for kind in ("async", "async", "plain")]
    await running.stop()

    assert found == [1, 2, 1]
    lines = journal.read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == ["start"] * 3 + ["stop"] * 3
    assert len({line.split()[1] for line in lines}) == 3, "the agent and a process for each of two capabilities"


@asynccontextmanager
async def without_agent() -> AsyncIterator[None]:
    yield


async def yields(agent: Agent) -> AsyncIterator[None]:
    yield


async def awaits(agent: Agent) -> None: ...


@pytest.mark.parametrize("lifespan", [without_agent, yields, awaits, "open", 7, object()])
def test_lifespan_of_another_shape_is_refused_at_the_import(lifespan: Any) -> None:
    with pytest.raises(SetupError) as caught:
        Agent("wrong", lifespan=lifespan)

    assert (caught.value.facts["parameter"], bool(caught.value.facts["fix"])) == ("lifespan", True)
    assert str(caught.value.facts["at"]).startswith(__file__)
