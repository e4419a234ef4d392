"""Retries, limits, cancellation, progress and control messages."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from typing import Any

import pytest

from coditect import Agent, Context, Retry
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import BACK_TTL_MS
from coditect.client.options import Options
from coditect.errors import InputError, TaskCanceled, TaskExpired, TaskFailed
from coditect.model.capability import LONGEST_DIRECT_SECONDS
from coditect.model.message import Message
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.json import loads
from tests.support import eventually
from tests.unit.agent.scene import Scene, failure_of

QUICK = Retry(max_attempts=3, first="100ms", cap="100ms")
SLOW = Retry(max_attempts=3, first="10m", cap="1h")


class Unlucky:
    """An agent that fails until `luck` attempts were made."""

    def __init__(self, luck: int = 99, *, error: BaseException | None = None, retry: Retry = QUICK) -> None:
        self.attempts: list[int] = []
        self.moments: list[float] = []
        """When they began, on the loop's clock."""
        self.agent = Agent("unlucky")

        @self.agent.capability("try.luck", retry=retry)
        async def attempt(_: None, ctx: Context) -> int:
            self.attempts.append(ctx.attempt)
            self.moments.append(asyncio.get_running_loop().time())
            if ctx.attempt < luck:
                raise error or ValueError(f"attempt {ctx.attempt}")
            return ctx.attempt


class Final(Exception):
    """Never worth another attempt."""

    retryable = False


async def test_failed_attempt_is_tried_again() -> None:
    unlucky = Unlucky(luck=3, retry=SLOW)
    async with TestFleet(agents=[unlucky.agent]) as fleet:
        assert await fleet.request("try.luck", None, int, timeout="1d") == 3
        assert unlucky.attempts == [1, 2, 3]
        assert await fleet.dead_letters() == ()


@pytest.mark.parametrize(
    ("luck", "durable", "counted"),
    [(3, False, (1, 0, 2)), (3, True, (1, 0, 2)), (9, False, (0, 1, 3)), (9, True, (0, 1, 3))],
)
async def test_agent_counts_tasks_that_failed_beside_attempts(
    luck: int, durable: bool, counted: tuple[int, int, int]
) -> None:
    unlucky = Unlucky(luck=luck, retry=Retry(max_attempts=3, first="1s", cap="1s"))
    async with TestFleet(agents=[unlucky.agent]) as fleet:
        await (await fleet.submit("try.luck", None, durable=durable)).outcome(timeout="1h")
        await fleet.advance("30s")  # past the next heartbeat
        (record,) = await fleet.registry.find(Search())

    load = record.load
    assert (load.completed, load.failed, load.failed_attempts) == counted


async def test_pause_between_attempts_is_at_most_what_the_policy_says() -> None:
    unlucky = Unlucky(luck=14, retry=Retry(max_attempts=14, first="1m", cap="1h"))
    async with TestFleet(agents=[unlucky.agent]) as fleet:
        await fleet.request("try.luck", None, int, timeout="7d")

    pauses = [later - earlier for earlier, later in pairwise(unlucky.moments)]
    hop = 2 * BACK_TTL_MS / 1000  # out of its retry-delay queue it goes by the capability's own queue
    assert pauses[0] <= 60 + hop
    assert 900 < max(pauses) <= 3_600 + hop


async def test_used_up_attempts_end_in_a_dead_letter_with_the_history(scene: Scene) -> None:
    unlucky = Unlucky()

    await failure_of(await (await scene.serve(unlucky.agent)).submit("try.luck"))

    letter = await scene.dead_letter("try.luck")
    history = loads(letter.headers["x-coditect-errors"].encode())
    assert [(one["attempt"], one["message"]) for one in history] == [(n, f"attempt {n}") for n in (1, 2, 3)]
    assert (letter.headers["x-coditect-attempt"], unlucky.attempts) == (3, [1, 2, 3])


SINGLE: Any = ValueError
NAMED = Retry(max_attempts=3, first="100ms", on=(KeyError, OSError))


@pytest.mark.parametrize(
    ("error", "retry", "options", "attempts"),
    [
        (Final("no"), QUICK, {}, 1),
        (InputError("no"), QUICK, {}, 1),
        (KeyError("a"), NAMED, {}, 3),
        (ValueError("b"), NAMED, {}, 1),
        (ValueError("c"), Retry(3, first="100ms", on=SINGLE), {}, 3),
        (ValueError("d"), Retry(3, first="100ms", on=()), {}, 1),
        (None, QUICK, {"max_attempts": 2}, 2),
        (None, QUICK, {"max_attempts": 1_000}, 3),
    ],
)
async def test_error_policy_and_task_decide_how_often_it_is_tried(
    error: Exception | None, retry: Retry, options: dict[str, Any], attempts: int
) -> None:
    unlucky = Unlucky(error=error, retry=retry)
    async with TestFleet(agents=[unlucky.agent]) as fleet:
        await failure_of(await fleet.submit("try.luck", **options))

    assert len(unlucky.attempts) == attempts


async def test_deadline_that_passes_between_attempts_ends_the_task() -> None:
    unlucky = Unlucky(luck=1_000, retry=Retry(max_attempts=1_000, first="1h", cap="1h"))
    async with TestFleet(agents=[unlucky.agent]) as fleet:
        handle = await fleet.client.submit("try.luck", deadline="8h")

        with pytest.raises((TaskExpired, TaskFailed)):
            await handle.result(timeout="1d")

        assert 8 * 3_600 <= fleet.elapsed_seconds <= 9 * 3_600
        assert len(await fleet.dead_letters("try.luck")) == 1
        assert max(unlucky.moments) < 8 * 3_600


class Waiting:
    """An agent whose handler waits for ever, on the loop and in a thread."""

    def __init__(self, *, timeout: str = "5m") -> None:
        self.started: list[str] = []
        self.ended = 0
        self.gate = threading.Event()
        self.agent = Agent("waiting", slots=2)
        once = Retry(max_attempts=1)

        @self.agent.capability("wait.loop", timeout=timeout, retry=once)
        async def wait(_: None, ctx: Context) -> None:
            self.started.append(ctx.task_id)
            try:
                await asyncio.Event().wait()
            finally:
                self.ended += 1

        @self.agent.capability("wait.thread", timeout=timeout, retry=once)
        def block(_: None) -> None:
            self.started.append("thread")
            self.gate.wait(10)


async def test_task_without_an_owner_runs_no_longer_than_the_broker_leaves_it_alone() -> None:
    waiting = Waiting(timeout="2h")
    longest_ms = round(LONGEST_DIRECT_SECONDS * 1000)
    async with TestFleet(agents=[waiting.agent]) as fleet, MemoryBroker(fleet.server, name="stranger") as broker:
        for limits in ({}, {"x-coditect-timeout-ms": longest_ms + 1}):
            await broker.publish(Message(b"null", limits), exchange=routing.TASKS, routing_key="wait.loop.p1")
        await fleet.advance("1s")
        assert [letter.reason for letter in await fleet.dead_letters("wait.loop")] == ["not_durable"] * 2

        bounded = {"x-coditect-timeout-ms": longest_ms, "x-coditect-max-attempts": 1}
        await broker.publish(Message(b"null", bounded), exchange=routing.TASKS, routing_key="wait.loop.p1")
        await fleet.advance(LONGEST_DIRECT_SECONDS - 1)
        assert (len(waiting.started), waiting.ended) == (1, 0)

        await fleet.advance("2s")
        assert waiting.ended == 1
        assert [letter.reason for letter in await fleet.dead_letters("wait.loop")][2:] == ["timeout"]


@pytest.mark.parametrize(
    ("limit", "seconds"), [({}, 300), ({"timeout": "20m"}, 300), ({"timeout": "2m"}, 120), ({"deadline": "2m"}, 120)]
)
async def test_shortest_limit_of_capability_and_task_cuts_the_handler_short(
    limit: dict[str, str], seconds: float
) -> None:
    waiting = Waiting(timeout="5m")
    async with TestFleet(agents=[waiting.agent]) as fleet:
        failure = await failure_of(await fleet.submit("wait.loop", **limit), "1h")

        assert (failure.reason, waiting.ended, fleet.elapsed_seconds) == ("timeout", 1, seconds)


@pytest.mark.parametrize(("timeout", "reason"), [("200ms", "timeout"), (None, "canceled")])
async def test_thread_that_goes_on_keeps_its_slot(scene: Scene, timeout: str | None, reason: str) -> None:
    waiting = Waiting()
    agent = await scene.start(waiting.agent)
    handle = await (await scene.client()).submit("wait.thread", timeout=timeout)
    await eventually(lambda: waiting.started)
    if timeout is None:
        await handle.cancel()

    assert (await failure_of(handle)).reason == reason
    assert agent.runtime.load().running == 1
    waiting.gate.set()
    await eventually(lambda: agent.runtime.load().running == 0)


@pytest.mark.parametrize("limit", [{"deadline": "3h"}, {"start_within": "3h"}])
async def test_task_that_waited_too_long_is_not_started(limit: dict[str, str]) -> None:
    waiting = Waiting()
    async with TestFleet(agents=[waiting.agent]) as fleet:
        await fleet.drain("waiting")
        handle = await fleet.submit("wait.loop", options=Options(**limit))  # type: ignore[arg-type]
        await fleet.advance("3h")

        await fleet.restart("waiting")

        with pytest.raises(TaskExpired):
            await handle.result(timeout="100s")
        assert waiting.started == []
        assert [letter.reason for letter in await fleet.dead_letters("wait.loop")] == ["expired"]


async def test_canceled_before_it_starts_it_never_does(scene: Scene) -> None:
    waiting = Waiting()
    client = await scene.serve(waiting.agent)
    busy = await client.submit("wait.loop")
    await eventually(lambda: waiting.started == [busy.task_id])
    queued = await client.submit("wait.loop")
    await queued.cancel(reason="not needed")
    await busy.cancel()

    with pytest.raises(TaskCanceled, match="not needed"):
        await queued.result(timeout="100s")
    assert waiting.started == [busy.task_id]


async def test_canceled_while_it_runs_it_ends(scene: Scene) -> None:
    waiting = Waiting()
    agent = await scene.start(waiting.agent)
    client = await scene.client()
    handle = await client.submit("wait.loop")
    await eventually(lambda: waiting.started)

    await client.tasks.cancel(handle.task_id, reason="enough")

    with pytest.raises(TaskCanceled, match="enough"):
        await handle.result(timeout="100s")
    assert waiting.ended == 1
    assert scene.dead("wait.loop") == 0
    await eventually(lambda: agent.runtime.load().running == 0)


async def test_canceled_after_its_end_it_keeps_its_result(scene: Scene) -> None:
    unlucky = Unlucky(luck=1)
    client = await scene.serve(unlucky.agent)
    handle = await client.submit("try.luck")
    assert await handle.result(int, timeout="100s") == 1

    await handle.cancel()

    assert await handle.result(int, timeout="100s") == 1


async def test_handle_hears_the_events_of_its_task(scene: Scene) -> None:
    agent = Agent("telling")
    event_stream = asyncio.Event()

    @agent.capability("tell.progress")
    async def tell(_: None, ctx: Context) -> None:
        await event_stream.wait()
        await ctx.progress(2.0, "over the top")
        await ctx.emit("my.own", colour="red")

    client = await scene.serve(agent)
    handle = await client.submit("tell.progress")
    async with client.events("my.#") as own:
        asyncio.get_running_loop().call_later(0.05, event_stream.set)
        heard = [event async for event in handle.events()]
        mine = await asyncio.wait_for(anext(own), 60)

    heard = [event for event in heard if event.type != "task.started"]
    assert [event.type for event in heard] == ["task.progress", "task.completed"]
    assert heard[0].data == {"share": 1.0, "note": "over the top"}
    assert (mine.subject, mine.data) == (handle.task_id, {"colour": "red"})


async def test_broadcast_reaches_all_but_the_excluded(scene: Scene) -> None:
    heard: list[str] = []

    def listener(name: str) -> Agent:
        agent = Agent(name)

        @agent.on_broadcast("news")
        async def hear(data: str) -> None:
            heard.append(f"{name}: {data}")

        return agent

    for name in ("one", "two", "three"):
        await scene.start(listener(name))
    client = await scene.client()

    await client.broadcast("news", "first", exclude=["two"])
    await client.broadcast("weather", "ignored")

    await eventually(lambda: sorted(heard) == ["one: first", "three: first"])


@pytest.mark.parametrize("tracebacks", [True, False])
async def test_tracebacks_go_to_submitters_only_where_that_is_set(tracebacks: bool) -> None:
    unlucky = Unlucky()
    async with TestFleet(agents=[unlucky.agent], settings=Settings(tracebacks=tracebacks)) as fleet:
        failure = await failure_of(await fleet.submit("try.luck"))
        (letter,) = await fleet.dead_letters("try.luck")

    assert letter.error is not None
    assert ("test_attempts.py" in failure.traceback) == tracebacks
    assert "test_attempts.py" in letter.error.traceback
    assert failure.message == "attempt 3"
