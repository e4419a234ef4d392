from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from coditect import Workflow
from coditect.agent.handlers.port import Services
from coditect.agent.services import TaskServices
from coditect.aio.clock import SystemClock
from coditect.errors import TaskFailed, TaskRejected
from coditect.model.limits.breaker import BreakerState
from coditect.model.task import Limits
from dispatcher.program import running_dispatcher
from tests.owner import ScriptedOwner
from tests.support import eventually
from tests.unit.agent.process_agent import MADE_UP, RAISED, knocks, worker
from tests.unit.agent.scene import Scene


async def failure(scene: Scene, capability: str, value: object = None) -> TaskFailed:
    client = await scene.client()
    with pytest.raises(TaskFailed) as caught:
        await (await client.submit(capability, value)).result(timeout="100s")
    return caught.value


async def test_value_is_validated_and_returned(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.add", {"left": 2, "right": 3}, int) == 5
    with pytest.raises(TaskRejected, match="left"):
        await client.request("proc.add", {"right": 3})


@pytest.mark.parametrize("capability", ["proc.parts", "proc.parts.async"])
async def test_handler_in_a_process_yields_its_result_in_parts(scene: Scene, capability: str) -> None:
    await scene.start(worker)
    client = await scene.client()

    handle = await client.submit(capability, 100, stream=True)

    assert [part async for part in handle.stream()] == list(range(100))
    assert await client.request(capability, 3) == [0, 1, 2]


async def test_call_in_a_process_is_guarded_by_the_agent_s_breaker(scene: Scene) -> None:
    breaker = (await scene.start(worker)).runtime.guards.breakers.get("dependency")
    client = await scene.client()

    assert await client.request("proc.call", "up") is False
    for what in ("down", "unknown", "down", "down"):
        assert breaker.is_closed
        await failure(scene, "proc.call", what)
    assert not breaker.is_closed

    assert (await failure(scene, "proc.call", "dies")).facts["reason"] == "process_died"  # it was the probe
    assert await client.request("proc.call", "up") is True
    assert breaker.is_closed


@pytest.mark.parametrize(
    ("capability", "value", "result"), [("proc.call", "up", False), ("proc.calls", None, [False] * 2)]
)
async def test_task_that_meets_an_open_breaker_in_a_process_goes_back(
    scene: Scene, capability: str, value: object, result: object
) -> None:
    breakers = (await scene.start(worker)).runtime.guards.breakers
    breakers.get("dependency").adopt(BreakerState("dependency", open=True, version=1))
    client = await scene.client()

    handle = await client.submit(capability, value)
    await eventually(lambda: breakers.waiting == {capability: "dependency"})
    breakers.get("dependency").adopt(BreakerState("dependency", open=False, version=2))

    assert await handle.result(object, timeout="60s") == result


async def test_process_is_used_again(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    pids = {await client.request("proc.pid", None, int) for _ in range(3)}

    assert len(pids) == 1
    assert os.getpid() not in pids


async def test_call_is_retried_in_the_process_under_one_budget(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.retry", 2, int) == 3
    tries = [await client.request("proc.retry.budget", 8, int, timeout="30s") for _ in range(3)]

    assert tries == [16, 10, 8], "the tasks share the ten free retries"


async def test_processes_end_with_the_agent(scene: Scene) -> None:
    running = await scene.start(worker)
    client = await scene.client()
    pid = await client.request("proc.pid", None, int)

    await running.stop()

    assert not psutil.pid_exists(pid)


async def test_exception_travels_with_type_message_and_traceback(scene: Scene) -> None:
    await scene.start(worker)

    error = await failure(scene, "proc.fail", "key")

    assert (error.facts["type"], error.facts["attempt"]) == ("KeyError", 1), "the policy retries ValueError only"
    assert 'raise KeyError("wrong key")' in error.__notes__[0]


@pytest.mark.parametrize("capability", ["proc.raise", "proc.raise.async"])
async def test_whatever_a_handler_in_a_process_raises_is_one_failed_attempt_with_its_name(
    scene: Scene, capability: str
) -> None:
    await scene.start(worker)
    told = {}
    for kind in RAISED:
        facts = (await failure(scene, capability, kind)).facts
        told[kind] = (facts["type"], str(facts["message"])[:30], facts["reason"], facts["attempt"])

    assert told == {
        "exit": ("SystemExit", "3", "handler_error", 1),
        "interrupt": ("KeyboardInterrupt", "stop", "handler_error", 1),
        "cancelled": ("CancelledError", "no more", "handler_error", 1),
        "generator": ("GeneratorExit", "closed", "handler_error", 1),
        "base": ("BaseException", "base", "handler_error", 1),
        "stop": ("StopIteration", "empty", "handler_error", 1),
        "unprintable": ("Unprintable", "It has no message: its class c", "handler_error", 1),
        "awkward": ("Awkward", "awkward", "handler_error", 1),
        "exits": ("Exits", "It has no message: its class c", "handler_error", 1),
        "unpicklable": ("Unpicklable", "it holds a lock", "handler_error", 1),
        "surrogate": ("ValueError", "\\ud800", "handler_error", 1),
        "group": ("ExceptionGroup", "two (2 sub-exceptions)", "handler_error", 1),
        "base group": ("BaseExceptionGroup", "two (1 sub-exception)", "handler_error", 1),
        "long": ("ValueError", "x" * 30, "handler_error", 1),
    }


async def test_process_survives_what_its_handler_raises(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()
    first = await client.request("proc.raise.pid", "", int)

    for kind in ("exit", "interrupt", "generator", "surrogate"):
        await failure(scene, "proc.raise.pid", kind)

    assert await client.request("proc.raise.pid", "", int) == first


async def test_error_of_a_validator_in_a_process_is_the_attempt_s(scene: Scene) -> None:
    await scene.start(worker)

    assert (await failure(scene, "proc.paint", {"color": "red"})).facts["type"] == "KeyError"


async def test_error_of_the_agent_s_service_reaches_the_handler_in_its_process(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert "argument" in await client.request("proc.service.breaks", None, str)


async def test_retry_policy_knows_the_exception_s_type(scene: Scene) -> None:
    await scene.start(worker)

    assert (await failure(scene, "proc.fail", "value")).facts["attempt"] == 3


async def test_timeout_kills_the_process_and_what_it_started(scene: Scene, tmp_path: Path) -> None:
    await scene.start(worker)

    error = await failure(scene, "proc.hang", str(tmp_path / "pids"))

    assert error.facts["reason"] == "timeout"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    await eventually(lambda: not any(_alive(pid) for pid in pids))


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_exit_of_the_process_is_a_failure_that_is_tried_again(scene: Scene) -> None:
    await scene.start(worker)

    error = await failure(scene, "proc.exit")

    assert (error.facts["type"], error.facts["attempt"]) == ("ProcessDied", 2)
    assert "exit_code=3" in str(error.facts["message"])


async def test_print_does_not_disturb_the_result(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.print", "noise", str) == "noise"
    assert await client.request("proc.print", "again", str) == "again"


@pytest.mark.parametrize("reader", ["cat", "sys.stdin"])
async def test_standard_input_of_a_handler_in_a_process_is_empty(scene: Scene, reader: str) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.stdin", reader, str) == ""
    assert await client.request("proc.stdin", reader, str) == "", "nothing of the task is in it"


async def test_prompt_of_a_handler_in_a_process_ends_at_once(scene: Scene) -> None:
    await scene.start(worker)

    assert (await failure(scene, "proc.stdin", "input")).facts["type"] == "EOFError"


async def test_handler_in_a_process_uses_a_pool_of_forked_processes(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.pool", [-1, 2, -3], list[int]) == [1, 2, 3]
    assert await client.request("proc.pool", [-4], list[int]) == [4]


async def test_program_of_a_handler_in_a_process_inherits_no_link_to_the_agent(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.descriptors", None, list[str]) == []


async def test_forked_child_of_a_handler_cannot_write_into_the_link(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.fork", "reports", int) == 5


async def test_death_of_a_process_is_seen_while_a_forked_child_lives(scene: Scene) -> None:
    await scene.start(worker)

    error = await failure(scene, "proc.fork", "dies")

    assert error.facts["reason"] == "process_died"
    assert "exit_code=7" in str(error.facts["message"])


async def test_process_whose_handler_closes_the_link_is_ended(scene: Scene) -> None:
    await scene.start(worker)

    error = await failure(scene, "proc.close")

    assert (error.facts["reason"], error.facts["type"]) == ("process_died", "ProcessDied")
    assert "closed its link to the agent" in str(error.facts["message"])


@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (40, "40")])
async def test_signal_that_ended_the_process_is_named(scene: Scene, number: int, name: str) -> None:
    await scene.start(worker)

    error = await failure(scene, "proc.signal", number)

    assert error.facts["reason"] == "process_died"
    assert f"signal={name!r}" in str(error.facts["message"])


async def test_progress_comes_through(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    async with client.events("task.progress") as events:
        task_id = await client.request("proc.progress", None, str)
        event = await anext(events)

    assert (event.subject, event.data) == (task_id, {"share": 0.5, "note": "half way"})


async def test_workspace_is_gone_after_the_task(scene: Scene, tmp_path: Path) -> None:
    await scene.start(worker, workspace=str(tmp_path))
    client = await scene.client()

    folder = Path(await client.request("proc.folder", None, str))

    assert folder.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_handler_in_a_process_asks_others_as_any_other(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.ask", [1, 2, 3], list[int]) == [2, 4, 6]


async def test_handler_in_a_process_awaits_what_needs_no_slot_as_any_other(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.wait.long", 0.001) == "waited"


async def test_request_s_error_reaches_the_handler_in_its_process(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    caught = await client.request("proc.ask.wrong", None, dict[str, str])

    assert caught["nobody"].startswith("UnknownCapability: No agent offers this capability (capability=")
    assert caught["late"].startswith("ResultTimeout: ")
    assert caught["failed"].startswith("TaskFailed: ")
    assert "wrong key" in caught["failed"]


async def test_child_of_a_handler_whose_process_is_killed_at_its_timeout_is_canceled(
    scene: Scene, owner: ScriptedOwner
) -> None:
    """A workflow's timeout counts while the handler waits; the child would sleep for half a minute."""
    running = await scene.start(worker)
    client = await scene.client()
    await client.request("proc.ask.for", {})  # the process is there from now on
    await owner.publish("proc.ask.for", {"capability": "proc.wait", "timeout": "1h"}, limits=Limits(timeout_ms=3_000))
    await eventually(lambda: (running.runtime.load().running, running.runtime.load().suspended) == (1, 1))

    await eventually(lambda: owner.results)
    await eventually(lambda: (running.runtime.load().running, running.runtime.load().suspended) == (0, 0), seconds=15)

    failure = owner.results[0].outcome.failure
    assert failure is not None
    assert failure.reason == "timeout"


@pytest.mark.slow
async def test_abandoned_request_disturbs_neither_process_nor_agent(scene: Scene) -> None:
    running = await scene.start(worker)
    client = await scene.client()

    assert await client.request("proc.abandon", None, str) == "went on"

    assert await client.request("proc.add", {"left": 2, "right": 3}, int) == 5
    await eventually(lambda: (running.runtime.load().running, running.runtime.load().suspended) == (0, 0))


async def test_event_of_a_handler_in_a_process_comes_through(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    async with client.events("proc.told") as events:
        task_id = await client.request("proc.tell", None, str)
        event = await anext(events)

    assert (event.subject, event.data) == (task_id, {"what": "all"})


@pytest.mark.parametrize("capability", ["proc.tell.wrong", "loop.tell.wrong", "thread.tell.wrong"])
async def test_event_that_json_cannot_say_fails_the_handler_wherever_it_runs(scene: Scene, capability: str) -> None:
    await scene.start(worker)

    facts = (await failure(scene, capability)).facts

    assert facts["type"] == "InvalidTask"
    assert "at='prices[1]'" in str(facts["message"])


async def test_progress_that_json_cannot_say_fails_the_handler(scene: Scene) -> None:
    await scene.start(worker)

    assert (await failure(scene, "loop.progress.wrong")).facts["type"] == "InvalidTask"


async def test_made_up_service_is_one_method_and_a_handler_in_a_process_reaches_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, service in MADE_UP.items():
        monkeypatch.setattr(Services, name, service, raising=False)
        monkeypatch.setattr(TaskServices, name, service, raising=False)
    await scene.start(worker)
    client = await scene.client()
    handle = await client.submit("proc.made.up")

    pid, told, refused = await handle.result(timeout="100s")

    assert told == {"token": "00ff", "seconds": 2.5, "pid": os.getpid(), "task": handle.task_id}
    assert pid != os.getpid()
    assert refused == "There is no such lock (name='wall')"
    assert knocks == [(f"door of {handle.task_id}", 2)]


async def test_service_that_does_not_exist_fails_the_handler(scene: Scene) -> None:
    await scene.start(worker)

    assert (await failure(scene, "proc.no.service")).facts["type"] == "AttributeError"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice of a victim is Linux'")
async def test_process_is_the_kernel_s_first_victim_when_memory_runs_out(scene: Scene) -> None:
    await scene.start(worker)
    client = await scene.client()

    pid = await client.request("proc.pid", None, int)

    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


async def test_result_over_the_limit_is_a_failure(scene: Scene) -> None:
    await scene.start(worker)

    assert (await failure(scene, "proc.large")).facts["reason"] == "result_too_large"


@pytest.mark.slow
async def test_lock_of_a_plain_handler_in_a_process_is_renewed_and_given_back(scene: Scene) -> None:
    plane = running_dispatcher(broker=await scene.broker(), registry=scene.registry, clock=SystemClock())
    await scene.stack.enter_async_context(plane)
    await scene.start(worker)
    client = await scene.client()

    first, second = [await client.request("proc.lock", None, dict, timeout="100s") for _ in range(2)]

    assert first["pid"] != os.getpid()
    assert (first["lost"], second["lost"]) == ("", "")
    assert first["fence"] < second["fence"]
    assert [row async for row in client.locks()] == []


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["small", "over the inline limit"])
async def test_handler_in_a_process_uses_shared_state_as_any_other(scene: Scene, tmp_path: Path, size: int) -> None:
    plane = running_dispatcher(broker=await scene.broker(), registry=scene.registry, clock=SystemClock())
    await scene.stack.enter_async_context(plane)
    await scene.start(worker, blob_url=f"file://{tmp_path}")
    client = await scene.client()
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
