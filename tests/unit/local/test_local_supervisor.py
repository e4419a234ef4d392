import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from coditect.agent.process import ProcessId, RestartPolicy, is_running
from coditect.local.errors import StartFailed
from coditect.local.state import ChildState, Phase
from coditect.local.supervisor import Child, ProcessSupervisor, last_lines, spawn
from coditect.local.watchdog import marked
from tests.support import eventually

PATIENT = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(600)"
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
QUICK = RestartPolicy(first_seconds=0.01, cap_seconds=0.02, settle_seconds=0.1)


def a_child(code: str, folder: Path, *, name: str = "one", stage: int = 0, **changes: object) -> Child:
    argv = (sys.executable, "-S", "-c", code)
    return Child(name=name, argv=argv, env=dict(os.environ), folder=folder, stage=stage, **changes)  # type: ignore[arg-type]


def supervisor_of(*children: Child, policy: RestartPolicy = QUICK, **more: Any) -> ProcessSupervisor:
    marker = more.pop("marker", uuid.uuid4().hex)
    return ProcessSupervisor(children, marker=marker, log_folder=children[0].folder, policy=policy, **more)


@asynccontextmanager
async def running(supervisor: ProcessSupervisor) -> AsyncIterator[None]:
    stop, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(stop=stop, ready=ready.set))
        await asyncio.wait_for(ready.wait(), 60)
        try:
            yield
        finally:
            stop.set()


async def always() -> bool:
    return True


async def never() -> bool:
    return False


def process_of(supervisor: ProcessSupervisor, index: int = 0) -> ProcessId:
    process = supervisor.children[index].process
    assert process is not None
    return process


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_child_that_is_killed_or_stands_stopped_is_started_again(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    said: list[str] = []
    policy = replace(QUICK, stopped_seconds=0.3)
    supervisor = supervisor_of(a_child(PATIENT, tmp_path), policy=policy, say=said.append)

    async with running(supervisor):
        first = process_of(supervisor)
        os.kill(first.pid, signal_number)
        await eventually(lambda: supervisor.children[0].restarts == 1 and supervisor.children[0].phase is Phase.READY)
        second = process_of(supervisor)

    assert first != second
    assert supervisor.children[0].last_exit == -signal.SIGKILL
    assert not is_running(first)
    assert not is_running(second)
    assert any("starting it again" in line for line in said)


async def test_what_a_dead_child_started_dies_with_it(tmp_path: Path) -> None:
    supervisor = supervisor_of(a_child(FAMILY, tmp_path))
    log = tmp_path / "one.log"

    async with running(supervisor):
        await eventually(lambda: log.read_text().strip())
        grandchild = int(log.read_text().split()[0])
        os.kill(process_of(supervisor).pid, signal.SIGKILL)
        await eventually(lambda: not _runs(grandchild))


async def test_stages_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    history: list[tuple[str, Phase]] = []

    def note() -> None:
        for child in supervisor.children:
            if not history or (child.name, child.phase) not in history:
                history.append((child.name, child.phase))

    children = [a_child(PATIENT, tmp_path, name="later", stage=1), a_child(PATIENT, tmp_path, name="first", stage=0)]
    supervisor = supervisor_of(*children, changed=note)

    async with running(supervisor):
        pass

    assert history.index(("first", Phase.READY)) < history.index(("later", Phase.STARTING))
    assert history.index(("later", Phase.STOPPED)) < history.index(("first", Phase.STOPPING))


async def test_child_that_ignores_the_signal_is_killed_in_time(tmp_path: Path) -> None:
    supervisor = supervisor_of(a_child(DEAF, tmp_path, stop_within_seconds=0.1))

    async with running(supervisor):
        await eventually(lambda: "deaf" in (tmp_path / "one.log").read_text())
        deaf = process_of(supervisor)

    assert not is_running(deaf)


async def test_child_that_cannot_start_fails_with_its_last_lines_and_stops_the_others(tmp_path: Path) -> None:
    marker = uuid.uuid4().hex
    children = [
        a_child(PATIENT, tmp_path, name="good", ready=always),
        a_child("raise SystemExit('no such setting')", tmp_path, name="bad", stage=1),
    ]
    policy = replace(QUICK, settle_seconds=60)  # a slow machine takes a while for an interpreter's start
    supervisor = supervisor_of(*children, marker=marker, policy=policy)

    with pytest.raises(StartFailed, match="no such setting") as caught:
        await supervisor.run(stop=asyncio.Event())

    assert caught.value.facts["program"] == "bad"
    assert marked(marker) == []


async def test_child_that_starts_slowly_and_never_works_is_given_up(tmp_path: Path) -> None:
    child = a_child("import sys, time; print('gone', flush=True); time.sleep(0.3); sys.exit(3)", tmp_path, ready=never)
    policy = RestartPolicy(first_seconds=0.01, cap_seconds=0.02, healthy_seconds=0.2, start_attempts=4)
    supervisor = supervisor_of(child, policy=policy)

    with pytest.raises(StartFailed, match="exit code 3"):
        await asyncio.wait_for(supervisor.run(stop=asyncio.Event()), 18)

    assert (tmp_path / "one.log").read_text().count("gone") in (4, 5)


async def test_child_that_is_not_ready_in_time_fails(tmp_path: Path) -> None:
    supervisor = supervisor_of(a_child(PATIENT, tmp_path, ready=never, ready_within_seconds=0.1))

    with pytest.raises(StartFailed, match="not ready in time"):
        await supervisor.run(stop=asyncio.Event())


async def test_stop_during_the_start_stops_what_has_started(tmp_path: Path) -> None:
    marker, stop = uuid.uuid4().hex, asyncio.Event()
    children = [a_child(PATIENT, tmp_path, ready=never), a_child(PATIENT, tmp_path, name="later", stage=1)]
    supervisor = supervisor_of(*children, marker=marker)

    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(stop=stop))
        await eventually(lambda: supervisor.children[0].phase is Phase.STARTING)
        stop.set()

    assert marked(marker) == []
    assert supervisor.children[1] == ChildState("later", Phase.STOPPED)


async def test_canceled_supervisor_leaves_nothing(tmp_path: Path) -> None:
    marker, ready = uuid.uuid4().hex, asyncio.Event()
    supervisor = supervisor_of(a_child(FAMILY, tmp_path), marker=marker)
    task = asyncio.ensure_future(supervisor.run(stop=asyncio.Event(), ready=ready.set))
    await asyncio.wait_for(ready.wait(), 60)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert marked(marker) == []


async def test_ready_file_of_the_last_process_does_not_count(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    ready_file.touch()

    child = spawn(a_child(PATIENT, tmp_path, ready_file=ready_file), marker=uuid.uuid4().hex, log_folder=tmp_path)

    child.kill()
    assert not ready_file.exists()


async def test_large_log_is_moved_aside(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    log.write_bytes(b"old\n" * 2_600_000)

    child = spawn(a_child(PATIENT, tmp_path), marker=uuid.uuid4().hex, log_folder=tmp_path)

    child.kill()
    assert log.stat().st_size == 0
    assert (tmp_path / "one.log.1").exists()


def test_last_lines_of_a_missing_log_are_none(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "missing.log") == ""


@pytest.mark.parametrize(("deaths", "seconds"), [(0, 0.0), (1, 0.0), (2, 0.5), (3, 1.0), (5, 4.0), (6, 5.0), (99, 5.0)])
def test_delay_grows_to_its_cap(deaths: int, seconds: float) -> None:
    assert RestartPolicy().delay(deaths) == seconds


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
