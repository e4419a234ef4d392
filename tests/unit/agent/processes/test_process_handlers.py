"""Handlers in processes of their own, which are replaced after a number of tasks, or when they hold too much memory."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from coditect import Agent, Client, Workflow
from coditect.agent import pool
from coditect.agent.context import Services
from coditect.agent.services import TaskServices
from coditect.aio.clock import SystemClock
from coditect.errors import TaskFailed, TaskRejected
from coditect.model.limits import BreakerState
from coditect.model.result import Failure
from coditect.model.task import Limits
from dispatcher.program import running_dispatcher
from tests.owner import ScriptedOwner
from tests.support import children_with, eventually
from tests.unit.agent.lifespan_agents import FOLDER, MANY_BYTES, replaced
from tests.unit.agent.process_agent import ERRORS, MADE_UP, knocks, worker
from tests.unit.agent.scene import Running, Scene, failure_of
from tests.unit.agent.workflow_tasks.works import failure_reported


@pytest.fixture
async def running(scene: Scene) -> Running:
    return await scene.start(worker)


@pytest.fixture
async def client(scene: Scene, running: Running) -> Client:
    """A client of a running agent, whose handlers have processes of their own."""
    return await scene.client()


def loads(running: Running) -> tuple[int, int]:
    """How many tasks run in the agent, and how many wait without a slot."""
    load = running.runtime.load()
    return load.running, load.suspended


async def test_input_is_validated_in_the_agent(client: Client) -> None:
    with pytest.raises(TaskRejected, match="left"):
        await client.request("proc.add", {"right": 3})


@pytest.mark.parametrize(
    ("capability", "value", "result"),
    [
        ("proc.add", {"left": 2, "right": 3}, 5),
        ("proc.ask", [1, 2, 3], [2, 4, 6]),
        ("proc.wait.long", 0.001, "waited"),
        ("proc.print", "noise", "noise"),
        ("proc.stdin", "cat", ""),
        ("proc.stdin", "sys.stdin", ""),
        ("proc.pool", [-1, 2, -3], [1, 2, 3]),
        ("proc.descriptors", None, []),
        ("proc.fork", "reports", 5),
    ],
    ids=[
        "a sum", "requests to others", "a wait without a slot", "prints", "a program that reads standard input",
        "standard input", "a pool of forked processes", "no link to the agent for a program",
        "no write into the link for a forked child",
    ],
)  # fmt: skip
async def test_handler_in_a_process_works_as_any_other(
    client: Client, capability: str, value: object, result: object
) -> None:
    assert [await client.request(capability, value, timeout="60s") for _ in range(2)] == [result] * 2


@pytest.mark.parametrize("capability", ["proc.logs", "proc.logs.context"])
async def test_line_of_a_handler_s_log_names_its_task(client: Client, capability: str) -> None:
    handle = await client.submit(capability, None)

    assert await handle.result(timeout="60s") == handle.task_id


@pytest.mark.parametrize(
    ("capability", "value", "type_", "message"),
    [
        ("proc.fail", "key", "KeyError", "wrong key"),
        ("proc.paint", {"color": "red"}, "KeyError", "red"),
        ("proc.stdin", "input", "EOFError", ""),
        ("proc.exit", None, "ProcessDied", "exit_code=3"),
        ("proc.fork", "dies", "ProcessDied", "exit_code=7"),
        ("proc.close", None, "ProcessDied", "closed its link to the agent"),
        ("proc.signal", signal.SIGSEGV, "ProcessDied", "signal='SIGSEGV'"),
        ("proc.signal", 40, "ProcessDied", "signal='40'"),
        ("proc.tell.wrong", None, "InvalidTask", "at='prices[1]'"),
        ("loop.tell.wrong", None, "InvalidTask", "at='prices[1]'"),
        ("thread.tell.wrong", None, "InvalidTask", "at='prices[1]'"),
        ("loop.progress.wrong", None, "InvalidTask", ""),
    ],
)
async def test_failure_says_what_happened_in_the_process(
    client: Client, capability: str, value: object, type_: str, message: str
) -> None:
    failure = await failure_of(await client.submit(capability, value))

    assert (failure.type, message in failure.message) == (type_, True)
    assert failure.reason == ("process_died" if type_ == "ProcessDied" else "handler_error")


@pytest.mark.parametrize(
    ("capability", "value", "attempts"), [("proc.fail", "key", 1), ("proc.fail", "value", 3), ("proc.exit", None, 2)]
)
async def test_retry_policy_knows_the_error(client: Client, capability: str, value: object, attempts: int) -> None:
    assert (await (await client.submit(capability, value)).outcome(timeout="100s")).attempt == attempts


@pytest.mark.parametrize("capability", ["proc.raise", "proc.raise.async"])
async def test_whatever_a_handler_in_a_process_raises_is_one_failed_attempt_and_the_process_survives(
    client: Client, capability: str
) -> None:
    first = await client.request(capability, -1, int)
    for number, make in enumerate(ERRORS):
        outcome = await (await client.submit(capability, number)).outcome(timeout="100s")
        failure, expected = outcome.failure, Failure.from_error(make(), "handler_error")
        assert failure is not None
        assert (failure.type, failure.message, failure.reason) == (expected.type, expected.message, "handler_error")
        assert (outcome.attempt, "raise ERRORS[number]()" in failure.traceback) == (1, True)

    assert await client.request(capability, -1, int) == first


@pytest.mark.parametrize("capability", ["proc.parts", "proc.parts.async"])
async def test_handler_in_a_process_yields_its_result_in_parts(client: Client, capability: str) -> None:
    handle = await client.submit(capability, 100, stream=True)

    assert [part async for part in handle.stream()] == list(range(100))
    assert await client.request(capability, 3) == [0, 1, 2]


async def test_call_in_a_process_is_guarded_by_the_agent_s_breaker(client: Client, running: Running) -> None:
    breaker = running.runtime.guards.breakers.get("dependency")

    assert await client.request("proc.call", "up") is False
    for what in ("down", "unknown", "down", "down"):
        assert breaker.is_closed
        await failure_of(await client.submit("proc.call", what))
    assert not breaker.is_closed

    assert (await failure_of(await client.submit("proc.call", "dies"))).reason == "process_died"  # it was the probe
    assert await client.request("proc.call", "up") is True
    assert breaker.is_closed


@pytest.mark.parametrize(
    ("capability", "value", "result"), [("proc.call", "up", False), ("proc.calls", None, [False] * 2)]
)
async def test_task_that_meets_an_open_breaker_in_a_process_goes_back(
    client: Client, running: Running, capability: str, value: object, result: object
) -> None:
    breakers = running.runtime.guards.breakers
    breakers.get("dependency").adopt(BreakerState("dependency", open=True, version=1))

    handle = await client.submit(capability, value)
    await eventually(lambda: breakers.waiting == {capability: "dependency"})
    breakers.get("dependency").adopt(BreakerState("dependency", open=False, version=2))

    assert await handle.result(object, timeout="60s") == result


async def test_call_is_retried_in_the_process_under_one_budget(client: Client) -> None:
    assert await client.request("proc.retry", 2, int) == 3
    tries = [await client.request("proc.retry.budget", 8, int, timeout="30s") for _ in range(3)]

    assert tries == [16, 10, 8], "the tasks share the ten free retries"


async def test_process_is_used_again_and_ends_with_the_agent(client: Client, running: Running) -> None:
    (pid,) = {await client.request("proc.raise", -1, int) for _ in range(3)}
    assert pid != os.getpid()
    if sys.platform == "linux":
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000", "the kernel's first victim"

    await running.stop()

    assert not psutil.pid_exists(pid)


async def test_error_of_the_agent_s_service_reaches_the_handler_in_its_process(client: Client) -> None:
    assert "argument" in await client.request("proc.service.breaks", None, str)


async def test_timeout_kills_the_process_and_what_it_started(client: Client, tmp_path: Path) -> None:
    failure = await failure_of(await client.submit("proc.hang", str(tmp_path / "pids")))

    assert failure.reason == "timeout"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    await eventually(lambda: not any(_alive(pid) for pid in pids))


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_progress_and_events_come_through(client: Client) -> None:
    async with client.events("task.progress") as told, client.events("proc.told") as emitted:
        task_id = await client.request("proc.progress", None, str)
        assert await client.request("proc.plain", [2, 3], int, timeout="60s") == 5
        progress, event = await anext(told), await anext(emitted)

    assert (progress.subject, progress.data) == (task_id, {"share": 0.5, "note": "half way"})
    assert event.data == {"total": 5}


async def test_request_s_error_reaches_the_handler_in_its_process(client: Client) -> None:
    caught = await client.request("proc.ask.wrong", None, dict[str, str])

    assert caught["nobody"].startswith("UnknownCapability: No agent offers this capability (capability=")
    assert caught["late"].startswith("ResultTimeout: ")
    assert caught["failed"].startswith("TaskFailed: ")
    assert "wrong key" in caught["failed"]


async def test_child_of_a_killed_process_is_canceled(client: Client, running: Running, owner: ScriptedOwner) -> None:
    """A workflow's timeout counts while the handler waits; the child would sleep for half a minute."""
    await client.request("proc.ask.for", {})  # the process is there from now on
    await owner.publish("proc.ask.for", {"capability": "proc.wait", "timeout": "1h"}, limits=Limits(timeout_ms=1_500))
    await eventually(lambda: loads(running) == (1, 1))

    failure = await failure_reported(owner)
    await eventually(lambda: loads(running) == (0, 0), seconds=15)

    assert failure.reason == "timeout"


async def test_abandoned_request_disturbs_neither_process_nor_agent(client: Client, running: Running) -> None:
    assert await client.request("proc.abandon", None, str) == "went on"

    assert await client.request("proc.add", {"left": 2, "right": 3}, int) == 5
    await eventually(lambda: loads(running) == (0, 0))


async def test_new_service_is_one_method_which_a_process_reaches(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, service in MADE_UP.items():
        monkeypatch.setattr(Services, name, service, raising=False)
        monkeypatch.setattr(TaskServices, name, service, raising=False)
    handle = await (await scene.serve(worker)).submit("proc.made.up")

    pid, told, refused = await handle.result(timeout="100s")

    assert told == {"token": "00ff", "seconds": 2.5, "pid": os.getpid(), "task": handle.task_id}
    assert pid != os.getpid()
    assert refused == "There is no such lock (name='wall')"
    assert knocks == [(f"door of {handle.task_id}", 2)]


@pytest.fixture
async def plane(scene: Scene) -> None:
    """A control plane beside the agents."""
    program = running_dispatcher(broker=await scene.broker(), registry=scene.registry, clock=SystemClock())
    await scene.stack.enter_async_context(program)


@pytest.mark.proof
@pytest.mark.usefixtures("plane")
async def test_lock_of_a_plain_handler_in_a_process_is_renewed_and_given_back(client: Client) -> None:
    first, second = [await client.request("proc.lock", None, dict[str, Any], timeout="100s") for _ in range(2)]

    assert first["pid"] != os.getpid()
    assert (first["lost"], second["lost"]) == ("", "")
    assert first["fence"] < second["fence"]
    assert [row async for row in client.locks.list()] == []


@pytest.mark.usefixtures("plane")
@pytest.mark.parametrize("size", [10, 2_000_000], ids=["small", "over the inline limit"])
async def test_handler_in_a_process_uses_shared_state_as_any_other(scene: Scene, tmp_path: Path, size: int) -> None:
    client = await scene.serve(worker, blob_url=f"file://{tmp_path}")
    flow = Workflow("shared")
    flow.task("proc.state", size, name="only")

    run = await client.start(flow)
    showed = await run.result(timeout="100s")

    assert showed.pop("pid") != os.getpid()
    assert showed == {
        "whole": True,
        "conflict": [1, 2],
        "done": {"draft": True},
        "count": 1,
        "task": f"{run.id}:only",
        "writer": True,
        "keys": ["count", "done", "plan"],
        "history": [1],
    }
    assert await run.shared.get("mine") == size


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def workers() -> set[int]:
    """The processes of handlers."""
    return children_with("coditect.agent.worker")


async def test_process_ends_after_its_tasks_failed_ones_too_and_closes_its_lifespan(scene: Scene, folder: Path) -> None:
    client = await scene.serve(replaced)

    pids = [await client.request("replaced.twice", "quick", int, timeout="60s") for _ in range(4)]
    failed = [int((await failure_of(await client.submit("replaced.twice", "fail"))).message) for _ in range(2)]
    pids += [*failed, await client.request("replaced.twice", "quick", int, timeout="60s")]

    assert list(Counter(pids).values()) == [2, 2, 2, 1]
    await eventually(lambda: all((folder / f"closed-{pid}").exists() for pid in pids[:-1]))
    await eventually(lambda: not {*pids[:-1]} & workers())


async def test_successor_is_ready_before_the_last_task_ends_and_takes_the_next_one(scene: Scene, folder: Path) -> None:
    client = await scene.serve(replaced)
    first = await client.request("replaced.twice", "quick", int, timeout="60s")
    assert workers() == {first}

    last = await client.submit("replaced.twice", "wait")
    await eventually(lambda: len(workers()) == 2)
    (successor,) = workers() - {first}
    (folder / "go").touch()

    assert await last.result(int) == first
    assert await client.request("replaced.twice", "quick", int, timeout="60s") == successor


async def test_tasks_of_all_slots_are_done_while_processes_are_replaced(scene: Scene) -> None:
    client = await scene.serve(replaced)

    handles = [one async for one in client.submit_many("replaced.twice", ["quick"] * 20)]
    pids = Counter(await asyncio.gather(*(one.result(int, timeout="120s") for one in handles)))

    assert (pids.total(), max(pids.values())) == (20, 2)


async def test_process_that_holds_too_much_memory_is_replaced_after_the_task(scene: Scene) -> None:
    client = await scene.serve(replaced)
    small = [await client.request("replaced.large", "stay", int, timeout="60s") for _ in range(2)]

    grown = await client.request("replaced.large", "grow", int, timeout="60s")
    after = await client.request("replaced.large", "stay", int, timeout="60s")

    assert small == [grown] * 2, "the task that grew it was finished"
    assert after != grown
    await eventually(lambda: grown not in workers())
    assert psutil.Process(after).memory_info().rss < MANY_BYTES


async def test_successor_that_cannot_be_started_costs_no_task(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await scene.serve(replaced)
    first = await client.request("replaced.twice", "quick", int, timeout="60s")
    spawn, refused = pool._spawn, list[Any]()

    async def refusing(*given: Any) -> Any:
        if not refused:
            refused.append(given)
            raise pool.WorkerUnavailable("no memory")
        return await spawn(*given)

    monkeypatch.setattr(pool, "_spawn", refusing)

    assert await client.request("replaced.twice", "quick", int, timeout="60s") == first
    assert await client.request("replaced.twice", "quick", int, timeout="60s") != first
    assert refused


async def test_successor_outlives_a_last_task_that_dies_and_ends_with_the_agent(scene: Scene) -> None:
    running = await scene.start(replaced)
    first = await scene.request("replaced.twice", "quick", int, timeout="60s")
    with pytest.raises(TaskFailed, match="process"):
        await scene.request("replaced.twice", "die", timeout="60s")

    after = await scene.request("replaced.twice", "quick", int, timeout="60s")
    assert after != first
    await running.stop()

    await eventually(lambda: not workers())
    assert not psutil.pid_exists(after)


def test_memory_is_a_text_with_a_unit_or_a_number_of_bytes() -> None:
    agent = Agent("shop")
    given: list[str | int] = ["512MB", "1.5GiB", 2_000_000]
    for number, most in enumerate(given):
        agent.capability(f"shop.price{number}", process=True, max_memory=most)(os.strerror)

    found = [one.process_limits.max_bytes for one in agent.capabilities if one.process_limits is not None]
    assert found == [512_000_000, 1_610_612_736, 2_000_000]
