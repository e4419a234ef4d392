"""Attempts: retries, where they run, limits, cancellation, progress, and what the log tells of those that failed."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coditect import Agent, Context, Retry, RetryAfter, TaskFailed, Workflow
from coditect.agent.handler import AttemptOutcome
from coditect.agent.settlement import OWN_TROUBLE_PAUSES, Pacing, own_reason
from coditect.broker.memory import MemoryBroker
from coditect.broker.port import Delivery
from coditect.broker.topology import BACK_TTL_MS
from coditect.cli.terminal.failure import raised_at
from coditect.client.options import Options
from coditect.errors import InputError, TaskCanceled, TaskExpired
from coditect.model.capability import LONGEST_DIRECT_SECONDS
from coditect.model.duration import Duration
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.registration import AgentStatus
from coditect.model.result import Status
from coditect.model.task import Task
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.telemetry.logs import JsonLines, PlainLines
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.json import loads
from tests.support import eventually
from tests.unit.agent.process_agent import worker
from tests.unit.agent.scene import Scene, failure_of

QUICK = Retry(max_attempts=3, first="100ms", cap="100ms")
SLOW = Retry(max_attempts=3, first="10m", cap="1h")
HOP_SECONDS = 2 * BACK_TTL_MS / 1000  # out of its retry-delay queue a task goes by the capability's own queue


class Unlucky:
    """An agent that fails until `luck` attempts were made."""

    def __init__(
        self, luck: int = 99, *, error: Exception | Callable[[], Exception] | None = None, retry: Retry = QUICK
    ) -> None:
        self.attempts: list[int] = []
        self.moments: list[float] = []
        """When they began, on the loop's clock."""
        self.agent = Agent("unlucky")

        @self.agent.capability("try.luck", retry=retry)
        async def attempt(_: None, ctx: Context) -> int:
            self.attempts.append(ctx.attempt)
            self.moments.append(asyncio.get_running_loop().time())
            if ctx.attempt < luck:
                raise (error() if callable(error) else error) or ValueError(f"attempt {ctx.attempt}")
            return ctx.attempt

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.moments)]


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

    assert unlucky.pauses[0] <= 60 + HOP_SECONDS
    assert 900 < max(unlucky.pauses) <= 3_600 + HOP_SECONDS


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
async def test_shortest_limit_of_capability_and_task_ends_the_handler(limit: dict[str, str], seconds: float) -> None:
    waiting = Waiting(timeout="5m")
    async with TestFleet(agents=[waiting.agent]) as fleet:
        failure = await failure_of(await fleet.submit("wait.loop", **limit), "1h")

        assert (failure.reason, waiting.ended, fleet.elapsed_seconds) == ("timeout", 1, seconds)


@pytest.mark.parametrize(("timeout", "reason"), [("200ms", "timeout"), (None, "canceled")])
async def test_thread_that_goes_on_keeps_its_slot(scene: Scene, timeout: str | None, reason: str) -> None:
    waiting = Waiting()
    agent = await scene.start(waiting.agent)
    handle = await scene.submit("wait.thread", timeout=timeout)
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


def busy_until(attempt: int, delay: Duration) -> Unlucky:
    """An agent that asks for each attempt before this one after a delay, whatever errors its policy names."""
    retry = Retry(max_attempts=3, first="100ms", cap="100ms", on=(OSError,))
    return Unlucky(attempt, error=partial(RetryAfter, delay), retry=retry)


@pytest.mark.parametrize(("asked", "seconds"), [("30s", 30), (45, 60), ("6m", 900), ("1h", 3_600), (0, 0.1)])
async def test_next_attempt_comes_by_the_queue_of_the_next_longer_delay(asked: Duration, seconds: float) -> None:
    busy = busy_until(2, asked)
    async with TestFleet(agents=[busy.agent]) as fleet:
        assert await fleet.request("try.luck", None, int, timeout="1d") == 2

    (pause,) = busy.pauses
    assert seconds <= pause <= seconds + HOP_SECONDS


@pytest.mark.parametrize(("max_attempts", "durable"), [(3, False), (2, True)])
async def test_attempts_are_used_up_as_by_any_failure(max_attempts: int, durable: bool) -> None:
    busy = busy_until(99, "30s")
    async with TestFleet(agents=[busy.agent]) as fleet:
        handle = await fleet.submit("try.luck", max_attempts=max_attempts, durable=durable)
        with pytest.raises(TaskFailed, match="asked for another attempt"):
            await handle.result(timeout="1d")

        letters = [(one.reason, one.attempts) for one in await fleet.dead_letters("try.luck")]
    assert len(busy.moments) == max_attempts
    assert letters == ([] if durable else [("retry_after", 3)])


@pytest.mark.parametrize("own", [{}, {"retry": Retry(max_attempts=2, first="100ms", cap="100ms")}])
async def test_node_of_a_workflow_waits_exactly_as_long_whoever_s_policy_counts(own: Any) -> None:
    busy = busy_until(2, "45s")
    flow = Workflow("calling")
    flow.task("try.luck", None, name="call", **own)
    async with TestFleet(agents=[busy.agent]) as fleet:
        run = await fleet.start(flow)
        await run.result(timeout="1d")

    (pause,) = busy.pauses
    assert 45 <= pause < 46


async def test_handler_in_a_process_asks_as_well(scene: Scene) -> None:
    client = await scene.serve(worker)

    began = asyncio.get_running_loop().time()
    assert await client.request("proc.later", "500ms", int, timeout="100s") == 2
    assert asyncio.get_running_loop().time() - began >= 0.5


@pytest.mark.parametrize("delay", ["61m", -1, "soon", None, True])
def test_delay_out_of_its_bounds_is_refused_with_what_to_write(delay: object) -> None:
    with pytest.raises(InputError) as caught:
        RetryAfter(delay)  # type: ignore[arg-type] # on purpose

    assert (caught.value.facts["parameter"], bool(caught.value.facts["fix"])) == ("delay", True)


async def test_refused_delay_ends_the_task_and_names_the_fix() -> None:
    busy = busy_until(99, "2h")
    async with TestFleet(agents=[busy.agent]) as fleet:
        with pytest.raises(TaskFailed) as caught:
            await fleet.request("try.luck", None, timeout="1d")

    assert (len(busy.moments), "RetryAfter('1h')" in str(caught.value)) == (1, True)


async def fail(_: object) -> None:
    raise ValueError("no luck")


def fail_in_thread(_: object) -> None:
    raise ValueError("no luck")


def failing(handler: Callable[[object], object] = fail) -> Agent:
    agent = Agent("failing")
    agent.capability("fail.now", retry=Retry(3, first="2s"))(handler)
    return agent


@pytest.mark.parametrize("handler", [fail, fail_in_thread])
@pytest.mark.parametrize("durable", [False, True])
async def test_each_attempt_is_a_line_and_the_traceback_is_there(
    handler: Callable[[object], object], durable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "coditect.agent.outcomes")
    async with TestFleet(agents=[failing(handler)]) as fleet:
        handle = await fleet.client.submit("fail.now", 1, durable=durable)
        with pytest.raises(TaskFailed) as raised:
            await handle.result(timeout="1h")

    lines: list[Any] = [one for one in caplog.records if one.name == "coditect.agent.outcomes"]
    again, last = "An attempt failed; the task is tried again", "A task failed"
    assert [(one.getMessage(), one.attempt) for one in lines] == [(again, 1), (again, 2), (last, 3)]
    assert {(one.error, one.task_id, one.capability) for one in lines} == {
        ("ValueError: no luck", handle.task_id, "fail.now")
    }
    assert f'File "{__file__}"' in lines[0].traceback
    assert str(raised.value).startswith("The task failed")
    for formatter in (PlainLines(), JsonLines()):
        assert "ValueError: no luck" in formatter.format(lines[0]).splitlines()[0]
        assert Path(__file__).name in formatter.format(lines[0])


async def test_a_flood_of_failures_does_not_fill_the_log_with_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "coditect.agent.outcomes")
    async with TestFleet(agents=[failing()]) as fleet:
        handles = [await fleet.client.submit("fail.now", number, max_attempts=1) for number in range(50)]
        for handle in handles:
            await handle.outcome()

    lines: list[Any] = [one for one in caplog.records if one.name == "coditect.agent.outcomes"]
    assert len(lines) == 50
    assert sum(hasattr(one, "traceback") for one in lines) < 10


def test_the_place_where_it_was_raised_is_the_handlers_own() -> None:
    trace = """Traceback (most recent call last):
  File "/srv/shop.py", line 12, in review
    load(task)
  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode
json.decoder.JSONDecodeError: Expecting value"""

    assert raised_at(trace) == "/srv/shop.py:12 in review"
    assert raised_at("") == ""


PERSISTENT = Retry(max_attempts=5, first="100ms", cap="500ms")


class Sick:
    """An agent of which some processes fail everything, for a reason that is set."""

    def __init__(self, error: Exception, *sick: str) -> None:
        self.error = error
        self.sick = set(sick)
        self.runs: list[str] = []
        self.tried: list[tuple[str, int]] = []
        self.agent = Agent("worker", slots=4)

        @self.agent.capability("work.do", retry=PERSISTENT)
        async def work(_: int, ctx: Context) -> str:
            self.runs.append(str(ctx.agent_id))
            self.tried.append((str(ctx.agent_id), ctx.attempt))
            if str(ctx.agent_id) in self.sick:
                raise self.error
            await asyncio.sleep(0.2)
            return str(ctx.agent_id)


def no_files() -> OSError:
    return OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("seed", range(2))
async def test_agent_out_of_files_beside_a_healthy_one_costs_no_task(seed: int) -> None:
    sick = Sick(no_files(), "worker-1")
    async with TestFleet(agents=[sick.agent], replicas=2, seed=seed) as fleet:
        handles = [await fleet.submit("work.do", number) for number in range(60)]

        assert {await handle.result(str, timeout="5m") for handle in handles} == {"worker-2"}
        assert await fleet.dead_letters("work.do") == ()
        assert fleet.elapsed_seconds < 30
    assert sick.runs.count("worker-1") <= 20


async def test_agent_says_what_it_lacks_and_recovers_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    sick = Sick(no_files(), "worker-1")
    async with TestFleet(agents=[sick.agent]) as fleet:
        with caplog.at_level(logging.WARNING), pytest.raises(TaskFailed):
            await (await fleet.submit("work.do", 1)).result(timeout="10m")
        await fleet.advance("2s")
        (record,) = await fleet.registry.find(Search())
        assert "EMFILE" in record.load.trouble
        assert record.load.status in (AgentStatus.BUSY, AgentStatus.IDLE)

        sick.sick.clear()
        await fleet.advance("1m")
        assert await fleet.request("work.do", 2, str, timeout="1m") == "worker-1"
        await fleet.advance("2s")
        (record,) = await fleet.registry.find(Search())
        assert record.load.trouble == ""
    told = [one.getMessage() for one in caplog.records]
    assert told.count("Tasks fail here for a reason of this agent's own") == 1


async def test_sick_agent_alone_takes_no_more_than_a_task_in_a_while() -> None:
    sick = Sick(no_files(), "worker-1")
    async with TestFleet(agents=[sick.agent]) as fleet:
        for number in range(200):
            await fleet.submit("work.do", number)
        await fleet.advance("20s")
        before = len(sick.runs)
        await fleet.advance("60s")

        assert len(sick.runs) - before <= 2 + 60 / OWN_TROUBLE_PAUSES.longest


async def test_mistakes_of_tasks_slow_nobody() -> None:
    sick = Sick(ValueError("bad input"), "worker-1")
    async with TestFleet(agents=[sick.agent]) as fleet:
        handles = [await fleet.submit("work.do", number) for number in range(40)]
        for handle in handles:
            with pytest.raises(TaskFailed):
                await handle.result(timeout="1m")

        assert fleet.elapsed_seconds < 20


@pytest.mark.parametrize("durable", [False, True])
async def test_retry_prefers_another_agent_than_the_one_that_failed(durable: bool) -> None:
    sick = Sick(ValueError("only here"), "worker-1")
    async with TestFleet(agents=[sick.agent], replicas=2, seed=1) as fleet:  # by others, one of 100 may fail five times
        for number in range(100):
            handle = await fleet.submit("work.do", number, durable=durable)
            assert await handle.result(str, timeout="1m") == "worker-2"

    retried = sum(attempt == 2 for _, attempt in sick.tried)
    again = sum((agent, attempt) == ("worker-1", 2) for agent, attempt in sick.tried)
    assert retried > 30
    assert again < retried / 4, "without a preference it is every second one"


def test_retry_in_the_agent_s_own_queue_is_not_returned() -> None:
    pacing, task = Pacing(), cast(Task, SimpleNamespace(id="task"))
    pacing.pause_seconds(task, AttemptOutcome(Status.FAILED))

    def returned(queue: str) -> bool:
        return pacing.for_another(task, cast(Delivery, SimpleNamespace(queue=queue, delivery_count=0)))

    assert returned("tasks.work.do.p1")
    assert not returned(routing.next_queue(AgentId("worker-1"))), "it would come back for ever"


def test_reason_is_found_behind_what_a_library_made_of_it() -> None:
    try:
        try:
            raise no_files()
        except OSError as error:
            raise ConnectionError("cannot connect") from error
    except ConnectionError as error:
        assert own_reason(error) == "EMFILE: Too many open files"
    assert own_reason(MemoryError()) == "out of memory"
    assert own_reason(ValueError()) == own_reason(FileNotFoundError(errno.ENOENT, "none")) == ""
