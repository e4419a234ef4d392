"""Retries, cancellation and pins on a real broker, on each wire path."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coditect import Agent, Context, Retry
from coditect.client.options import Options
from coditect.errors import TaskCanceled, TaskFailed
from coditect.model.ids import AgentId
from coditect.settings.settings import Settings
from coditect.wire import routing
from coditect.wire.json import loads
from tests.fleet import running
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers


@pytest.fixture
def settings(settings: Settings, wire: str) -> Settings:
    """Those of agent and client alike."""
    return replace(settings, wire=wire)


class Worker:
    """An agent that fails so many attempts of a task, then holds it until it is released."""

    def __init__(self, capability: str, *, failures: int = 0, received: bool = False) -> None:
        self.attempts: list[tuple[str, int]] = []
        self.canceled: list[str] = []
        self.released = asyncio.Event()
        if not received:
            self.released.set()
        self.agent = Agent("worker", slots=2)  # one of them is kept for P0

        @self.agent.capability(capability, retry=Retry(max_attempts=3, first="100ms", cap="100ms"))
        async def work(number: int, ctx: Context) -> int:
            self.attempts.append((ctx.task_id, ctx.attempt))
            if ctx.attempt <= failures:
                raise ValueError(f"attempt {ctx.attempt}")
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.canceled.append(ctx.task_id)
                raise
            return number


async def test_failed_attempts_are_tried_again(servers: Servers, settings: Settings, capability: str) -> None:
    worker = Worker(capability, failures=2)
    async with running(worker.agent, servers, settings=settings) as fleet:
        handle = await fleet.client.submit(capability, 7)

        assert await handle.result(int, timeout="100s") == 7
        assert fleet.broker.wire == settings.wire
        assert worker.attempts == [(handle.task_id, attempt) for attempt in (1, 2, 3)]
        assert await fleet.letters(routing.dead_queue(capability)) == []


async def test_used_up_attempts_end_in_a_dead_letter(servers: Servers, settings: Settings, capability: str) -> None:
    worker = Worker(capability, failures=3)
    async with running(worker.agent, servers, settings=settings) as fleet:
        handle = await fleet.client.submit(capability, 7)

        with pytest.raises(TaskFailed) as caught:
            await handle.result(timeout="100s")
        await eventually(lambda: fleet.holds(routing.dead_queue(capability), 1))
        (letter,) = await fleet.letters(routing.dead_queue(capability))

        assert caught.value.facts["attempt"] == 3
        assert (letter.message_id, letter.body) == (handle.task_id, b"7")
        errors = loads(str(letter.headers["x-coditect-errors"]).encode())
        assert [one["message"] for one in errors] == ["attempt 1", "attempt 2", "attempt 3"]


async def test_canceled_while_it_runs_it_ends(servers: Servers, settings: Settings, capability: str) -> None:
    worker = Worker(capability, received=True)
    async with running(worker.agent, servers, settings=settings) as fleet:
        handle = await fleet.client.submit(capability, 7)
        await eventually(lambda: worker.attempts)

        await handle.cancel(reason="enough")

        with pytest.raises(TaskCanceled, match="enough"):
            await handle.result(timeout="100s")
        assert worker.canceled == [handle.task_id]
        await eventually(lambda: fleet.runtime.load().running == 0)
        assert await fleet.letters(routing.dead_queue(capability)) == []


async def test_canceled_before_it_starts_it_never_does(servers: Servers, settings: Settings, capability: str) -> None:
    worker = Worker(capability, received=True)
    async with running(worker.agent, servers, settings=settings) as fleet:
        busy = await fleet.client.submit(capability, 1)
        await eventually(lambda: worker.attempts)
        queued = await fleet.client.submit(capability, 2)

        await queued.cancel(reason="not needed")
        worker.released.set()

        assert await busy.result(int, timeout="100s") == 1
        with pytest.raises(TaskCanceled, match="not needed"):
            await queued.result(timeout="100s")
        assert worker.attempts == [(busy.task_id, 1)]


async def test_pinned_tasks_are_done_by_that_agent(servers: Servers, settings: Settings, capability: str) -> None:
    pinned, other = Worker(capability), Worker(capability)
    async with (
        running(other.agent, servers, settings=settings) as fleet,
        running(pinned.agent, servers, settings=settings) as chosen,
    ):
        options = Options(pin=chosen.runtime.agent_id)
        for number in range(20):
            assert await fleet.client.request(capability, number, int, timeout="20s", options=options) == number

        assert (len(pinned.attempts), len(other.attempts)) == (20, 0)


async def test_task_pinned_to_a_busy_agent_goes_to_another(
    servers: Servers, settings: Settings, capability: str
) -> None:
    busy, idle = Worker(capability, received=True), Worker(capability)
    async with (
        running(idle.agent, servers, settings=settings) as fleet,
        running(busy.agent, servers, settings=settings) as chosen,
    ):
        options = Options(pin=chosen.runtime.agent_id)
        first = await fleet.client.submit(capability, 1, options=options)
        await eventually(lambda: busy.attempts)
        second = await fleet.client.submit(capability, 2, options=options)

        assert await second.result(int, timeout="100s") == 2
        busy.released.set()
        assert await first.result(int, timeout="100s") == 1
        assert idle.attempts == [(second.task_id, 1)]


async def test_task_pinned_to_an_agent_that_is_gone_goes_to_another(
    servers: Servers, settings: Settings, capability: str
) -> None:
    worker = Worker(capability)
    async with running(worker.agent, servers, settings=settings) as fleet:
        gone = await fleet.client.submit(capability, 7, pin=AgentId("worker-that-is-gone"))

        assert (await gone.outcome(timeout="100s")).agent_id == fleet.runtime.agent_id
