"""A cancel that reached nobody is told again to whoever reports that it still runs what was canceled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from coditect import Agent, Retry, Workflow
from coditect.testing import TestFleet
from coditect.wire.control import Started, Verb
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Began, Claimed, Command, Heard, Lost
from dispatcher.ledger.effects import NodeKey
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.recorder.ports import RecordedDatabase
from dispatcher.store.memory import Disk, MemoryDatabase
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed

PLACE = NodeKey("w", "one")


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        flow = Workflow("one")
        flow.task("work", name="one", retry=Retry(max_attempts=2))
        await ledger.start(flow.definition())
        await ledger.batch(Claimed(PLACE, 1, AGENT))
        yield ledger


async def told(ledger: Ledger, command: Command) -> list[tuple[NodeKey, int]]:
    await ledger.batch(command)
    return ledger.seen[-1].cancels


@pytest.mark.parametrize("start", [False, True], ids=["beat", "start"])
async def test_agent_that_reports_what_was_canceled_is_told_again_and_as_often(ledger: Ledger, start: bool) -> None:
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    report = Began(Started(*PLACE, 2, 1, AGENT, 1, 5)) if start else Heard(PLACE, 2)

    assert [await told(ledger, report) for _ in range(2)] == [[(PLACE, 1)]] * 2


async def test_who_runs_an_older_publication_of_what_works_elsewhere_is_told(ledger: Ledger) -> None:
    await ledger.batch(Lost(PLACE, 1, AGENT), Claimed(PLACE, 2, "worker-2"))
    row = await ledger.node("one")

    assert (row.state, row.publication, row.fence) == (TaskState.WORKING, 2, 4)
    assert await told(ledger, Heard(PLACE, 2)) == [(PLACE, 1)]
    assert await told(ledger, Heard(PLACE, 4)) == []


@pytest.mark.parametrize("fence", [2, 3])
async def test_nobody_is_told_who_may_still_be_granted_it(ledger: Ledger, fence: int) -> None:
    assert await told(ledger, Heard(PLACE, 2)) == [], "it works"
    await ledger.batch(Lost(PLACE, 1, AGENT))

    assert await told(ledger, Heard(PLACE, fence)) == [], "it is published again, and not granted to anybody"
    assert await told(ledger, Heard(NodeKey("w", "unknown"), fence)) == []


async def test_agent_that_told_the_end_itself_is_told_nothing_and_one_that_was_given_up_is(ledger: Ledger) -> None:
    await ledger.batch(Lost(PLACE, 1, AGENT), Claimed(PLACE, 2, "worker-2"), Lost(PLACE, 2, "worker-2"))
    assert await ledger.states() == {"one": TaskState.DEAD}
    assert await told(ledger, Heard(PLACE, 4)) == [(PLACE, 2)]

    flow = Workflow("other")
    flow.task("work", name="one")
    await ledger.start(flow.definition(), workflow="v")
    await ledger.batch(ledger.finished(ledger.published[-1], completed()))
    assert await told(ledger, Heard(NodeKey("v", "one"), 1)) == []


class Kept(TestFleet):
    """A fleet whose ledger outlives its dispatcher, which can be killed right behind a commit."""

    dies = False

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        self._disk = Disk()
        return {"dispatcher": self._dispatcher}

    @asynccontextmanager
    async def _dispatcher(self, *, owner: str, **ports: Any) -> AsyncIterator[Any]:
        store = MemoryDatabase(self._disk)
        async with (
            RecordedDatabase(store, lambda *_, **__: None, reached=self._reached) as database,
            running_dispatcher(database=database, options=DispatcherOptions(shards=1, owner=owner), **ports) as running,
        ):
            yield running

    def _reached(self, point: str) -> None:
        if self.dies and point == "commit.after":
            self.dies = False
            self.kill("dispatcher")


async def test_canceled_node_ends_after_its_next_beat_though_its_dispatcher_died_before_it_told() -> None:
    ends: list[str] = []
    agent, flow = Agent("long"), Workflow("long")
    flow.task("long.work", name="only")

    @agent.capability("long.work", timeout="2h")
    async def work(_: None) -> None:
        try:
            await asyncio.sleep(7_000)
        except asyncio.CancelledError:
            ends.append("canceled")
            raise

    async with Kept(agents=[agent]) as fleet:
        run = await fleet.client.start(flow)
        await fleet.advance("1m")

        fleet.dies = True
        asking = asyncio.ensure_future(run.cancel())
        await fleet.advance("1s")
        assert (fleet.dies, ends) == (False, [])
        await fleet.restart("dispatcher")
        await fleet.advance("30s")

        await asking
        assert ends == ["canceled"]
        assert await run.wait(timeout="1m") is WorkflowState.CANCELED
        assert [row.state async for row in run.nodes()] == ["canceled"]
