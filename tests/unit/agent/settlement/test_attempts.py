"""Retries, limits, cancellation, progress and control messages."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from typing import Any

import pytest

from coditect import Agent, Context, Retry
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import BACK_TTL_MS, reply_queue
from coditect.client.options import Options
from coditect.errors import InputError, TaskCanceled, TaskExpired, TaskFailed
from coditect.model.capability import LONGEST_DIRECT_SECONDS
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import control_messages, routing
from coditect.wire.json import loads
from tests.support import eventually
from tests.unit.agent.scene import Scene, replies

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


async def failed(scene: Scene, unlucky: Unlucky, **options: Any) -> TaskFailed:
    await scene.start(unlucky.agent)
    client = await scene.client()
    with pytest.raises(TaskFailed) as caught:
        await (await client.submit("try.luck", options=Options(**options))).result(timeout="100s")
    return caught.value


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
    unlucky = Unlucky(luck=40, retry=Retry(max_attempts=40, first="1m", cap="1h"))
    async with TestFleet(agents=[unlucky.agent]) as fleet:
        await fleet.request("try.luck", None, int, timeout="7d")

    pauses = [later - earlier for earlier, later in pairwise(unlucky.moments)]
    hop = 2 * BACK_TTL_MS / 1000  # out of its retry-delay queue it goes by the capability's own queue
    assert pauses[0] <= 60 + hop
    assert 900 < max(pauses) <= 3_600 + hop


async def test_used_up_attempts_end_in_a_dead_letter_with_the_history(scene: Scene) -> None:
    unlucky = Unlucky()

    error = await failed(scene, unlucky)

    assert (error.facts["attempt"], unlucky.attempts) == (3, [1, 2, 3])
    letter = await scene.dead_letter("try.luck")
    history = loads(letter.headers["x-coditect-errors"].encode())
    assert [one["message"] for one in history] == ["attempt 1", "attempt 2", "attempt 3"]
    assert [one["attempt"] for one in history] == [1, 2, 3]
    assert letter.headers["x-coditect-attempt"] == 3


@pytest.mark.parametrize("error", [Final("no"), InputError("no")])
async def test_error_that_is_not_retryable_is_the_last(scene: Scene, error: Exception) -> None:
    unlucky = Unlucky(error=error)

    await failed(scene, unlucky)

    assert unlucky.attempts == [1]


@pytest.mark.parametrize(("error", "attempts"), [(KeyError("a"), 3), (ValueError("b"), 1)])
async def test_policy_names_the_errors_that_are_tried_again(scene: Scene, error: Exception, attempts: int) -> None:
    unlucky = Unlucky(error=error, retry=Retry(max_attempts=3, first="100ms", on=(KeyError, OSError)))

    await failed(scene, unlucky)

    assert len(unlucky.attempts) == attempts


async def test_task_s_own_number_of_attempts_counts(scene: Scene) -> None:
    unlucky = Unlucky()

    await failed(scene, unlucky, max_attempts=2)

    assert unlucky.attempts == [1, 2]


async def test_task_s_own_number_of_attempts_raises_nothing(scene: Scene) -> None:
    unlucky = Unlucky()

    await failed(scene, unlucky, max_attempts=1_000)

    assert unlucky.attempts == [1, 2, 3]


async def test_deadline_of_two_days_that_passes_between_attempts_ends_the_task() -> None:
    unlucky = Unlucky(luck=1_000, retry=Retry(max_attempts=1_000, first="1h", cap="1h"))
    async with TestFleet(agents=[unlucky.agent]) as fleet:
        handle = await fleet.client.submit("try.luck", deadline="2d")

        with pytest.raises((TaskExpired, TaskFailed)):
            await handle.result(timeout="3d")

        assert 2 * 86_400 <= fleet.elapsed_seconds <= 2 * 86_400 + 3_600
        assert len(await fleet.dead_letters("try.luck")) == 1
        assert max(unlucky.moments) < 2 * 86_400


async def test_headers_of_a_foreign_publisher_survive_a_retry(scene: Scene) -> None:
    unlucky = Unlucky()
    await scene.start(unlucky.agent)
    broker = await scene.broker()

    await broker.publish(
        Message(b"null", {"x-tenant": "blue", "CC": ["nowhere.p1"]}, message_id="foreign"),
        exchange=routing.TASKS,
        routing_key="try.luck.p1",
    )

    await eventually(lambda: scene.dead("try.luck") == 1)
    assert (await scene.dead_letter("try.luck")).headers["x-tenant"] == "blue"
    assert unlucky.attempts == [1, 2, 3]


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


async def test_timeout_of_the_capability_cancels_the_handler() -> None:
    waiting = Waiting(timeout="10m")
    async with TestFleet(agents=[waiting.agent]) as fleet:
        with pytest.raises(TaskFailed, match="timeout"):
            await fleet.request("wait.loop", timeout="1h")

        assert (waiting.ended, fleet.elapsed_seconds) == (1, 600)


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


@pytest.mark.parametrize("limit", [{"timeout": "2m"}, {"deadline": "2m"}])
async def test_shorter_limit_of_the_task_cuts_the_handler_short(limit: dict[str, str]) -> None:
    waiting = Waiting(timeout="5m")
    async with TestFleet(agents=[waiting.agent]) as fleet:
        handle = await fleet.submit("wait.loop", **limit)

        with pytest.raises(TaskFailed, match="timeout"):
            await handle.result(timeout="1h")

        assert fleet.elapsed_seconds == 120


async def test_longer_limit_in_a_header_raises_nothing() -> None:
    waiting = Waiting(timeout="5m")
    async with TestFleet(agents=[waiting.agent]) as fleet, MemoryBroker(fleet.server, name="stranger") as broker:
        an_hour = Message(b"null", {"x-coditect-timeout-ms": 3_600_000})
        await broker.publish(an_hour, exchange=routing.TASKS, routing_key="wait.loop.p1")
        await fleet.advance("299s")
        before = waiting.ended

        await fleet.advance("2s")

        assert (len(waiting.started), before, waiting.ended) == (1, 0, 1)
        assert [letter.reason for letter in await fleet.dead_letters("wait.loop")] == ["timeout"]


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_thread_that_goes_on_keeps_its_slot(scene: Scene, how: str) -> None:
    waiting = Waiting()
    agent = await scene.start(waiting.agent)
    client = await scene.client()
    handle = await client.submit("wait.thread", timeout="200ms" if how == "timeout" else None)
    await eventually(lambda: waiting.started)
    if how == "cancel":
        await handle.cancel()

    with pytest.raises(TaskFailed if how == "timeout" else TaskCanceled):
        await handle.result(timeout="100s")

    assert agent.runtime.load().running == 1
    waiting.gate.set()
    await eventually(lambda: agent.runtime.load().running == 0)


@pytest.mark.parametrize("limit", [{"deadline": "2d"}, {"start_within": "2d"}])
async def test_task_that_waited_too_long_is_not_started(limit: dict[str, str]) -> None:
    waiting = Waiting()
    async with TestFleet(agents=[waiting.agent]) as fleet:
        await fleet.drain("waiting")
        handle = await fleet.submit("wait.loop", options=Options(**limit))  # type: ignore[arg-type]
        await fleet.advance("2d")

        await fleet.restart("waiting")

        with pytest.raises(TaskExpired):
            await handle.result(timeout="100s")
        assert waiting.started == []
        assert [letter.reason for letter in await fleet.dead_letters("wait.loop")] == ["expired"]


async def test_canceled_before_it_starts_it_never_does(scene: Scene) -> None:
    waiting = Waiting()
    await scene.start(waiting.agent)
    client = await scene.client()
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

    await client.cancel(handle.task_id, reason="enough")

    with pytest.raises(TaskCanceled, match="enough"):
        await handle.result(timeout="100s")
    assert waiting.ended == 1
    assert scene.dead("wait.loop") == 0
    await eventually(lambda: agent.runtime.load().running == 0)


async def test_canceled_after_its_end_it_keeps_its_result(scene: Scene) -> None:
    unlucky = Unlucky(luck=1)
    await scene.start(unlucky.agent)
    client = await scene.client()
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

    await scene.start(agent)
    client = await scene.client()
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


async def test_ping_is_answered_and_strange_control_messages_are_ignored(scene: Scene) -> None:
    agent = await scene.start(Unlucky().agent)
    broker = await scene.broker()
    key = routing.mailbox_key(AgentId(agent.agent_id))
    await broker.declare(reply_queue("reply.pings"))
    arrived = await replies(broker, "reply.pings")
    strange, cancel = control_messages.message("strange"), control_messages.message(control_messages.CANCEL, [1])
    for message in (Message(b"{", type="?"), strange, cancel):
        await broker.publish(message, exchange=routing.AGENTS, routing_key=key)

    await broker.publish(
        Message(b"null", type=control_messages.PING, reply_to="reply.pings", correlation_id="p"),
        exchange=routing.AGENTS,
        routing_key=key,
    )

    await eventually(lambda: arrived)
    assert loads(arrived[0].message.body) == {"agent_id": agent.agent_id, "status": "idle", "running": 0}


@pytest.mark.parametrize("tracebacks", [True, False])
async def test_tracebacks_go_to_submitters_only_where_that_is_set(tracebacks: bool) -> None:
    agent = Agent("failing")

    @agent.capability("fail.now", retry=Retry(max_attempts=1))
    async def fail(_: object) -> None:
        raise ValueError("inside")

    async with TestFleet(agents=[agent], settings=Settings(tracebacks=tracebacks)) as fleet:
        handle = await fleet.submit("fail.now")
        outcome = await handle.outcome(timeout="1m")
        (letter,) = await fleet.dead_letters("fail.now")

    assert outcome.failure is not None and letter.error is not None
    assert ("test_attempts.py" in outcome.failure.traceback) == tracebacks
    assert "test_attempts.py" in letter.error.traceback
    assert outcome.failure.message == "inside"
