import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coditect.local import (
    AlreadyUp,
    Phase,
    Program,
    StartFailed,
    UpFolder,
    UpPlan,
    doctor,
    down,
    read_state,
    up,
    up_detached,
)
from coditect.local.state import UpState
from coditect.local.watchdog import marked

AGENT = """
import os, pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(os.environ["CODITECT_READY_FILE"]).touch()
time.sleep(600)
"""


def until(condition: Callable[[], object], *, within_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def a_plan(folder: Path) -> UpPlan:
    agent = Program("agent", (sys.executable, "-S", "-c", AGENT), announces_ready=True)
    return UpPlan(folder=folder / ".coditect", working_folder=folder, programs=(agent,))


def beside_given_servers(plan: UpPlan, *programs: Program) -> UpPlan:
    return UpPlan(plan.folder, plan.working_folder, programs, "amqp://127.0.0.1:9", "redis://127.0.0.1:9")


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[UpPlan]:
    found = a_plan(tmp_path)
    yield found
    down(found.folder)


def state_of(plan: UpPlan) -> UpState:
    state = read_state(UpFolder(plan.folder))
    assert state is not None
    return state


def restarted(plan: UpPlan, name: str) -> bool:
    child = next(child for child in state_of(plan).children if child.name == name)
    return child.restarts == 1 and child.phase is Phase.READY


def ports_are_free(plan: UpPlan) -> bool:
    ports = json.loads(UpFolder(plan.folder).servers.read_text())["ports"]
    return all(is_free(port) for port in ports.values())


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_up_heals_what_is_killed_and_down_leaves_nothing(plan: UpPlan) -> None:
    said: list[str] = []

    state = up_detached(plan, environ=os.environ, say=said.append)

    assert state.phase is Phase.READY
    assert any(line.startswith("rabbitmq is ready") for line in said)
    assert UpFolder(plan.folder).env.read_text().startswith("CODITECT_AMQP_URL=amqp://coditect:")
    assert all(check.ok for check in doctor(plan.folder, environ=os.environ))
    with pytest.raises(AlreadyUp):
        up_detached(plan, environ=os.environ, say=said.append)

    for child in state.children:
        assert child.process is not None
        os.kill(child.process.pid, signal.SIGKILL)
    for child in state.children:
        until(lambda name=child.name: restarted(plan, name))  # type: ignore[misc]
    assert all(check.ok for check in doctor(plan.folder, environ=os.environ))

    downed = down(plan.folder)

    assert (downed.was_up, set(downed.stopped)) == (True, {"epmd", "rabbitmq", "redis", "agent"})
    assert marked(state.marker) == []
    until(lambda: ports_are_free(plan))  # the kernel forgets a killed process a moment before its sockets
    assert not UpFolder(plan.folder).env.exists()
    assert not down(plan.folder).was_up


def test_killed_supervisor_leaves_nothing_running_and_no_lock(plan: UpPlan) -> None:
    first = up_detached(plan, environ=os.environ, say=lambda _: None)

    os.kill(first.supervisor.pid, signal.SIGKILL)

    until(lambda: not marked(first.marker), within_seconds=10)
    assert not all(check.ok for check in doctor(plan.folder, environ=os.environ))
    until(lambda: ports_are_free(plan))  # the kernel forgets a killed process a moment before its sockets

    second = up_detached(plan, environ=os.environ, say=lambda _: None)

    assert (second.amqp_url, second.redis_url) == (first.amqp_url, first.redis_url)
    assert second.marker != first.marker


def test_program_that_cannot_start_is_reported_with_its_last_lines(plan: UpPlan) -> None:
    bad = Program("agent", (sys.executable, "-c", "raise SystemExit('no such agent file')"), announces_ready=True)
    with pytest.raises(StartFailed, match="no such agent file"):
        up_detached(beside_given_servers(plan, bad), environ=os.environ, say=lambda _: None)

    assert not down(plan.folder).was_up


def test_interrupted_before_all_is_ready_nothing_stays(plan: UpPlan) -> None:
    never = Program("never", (sys.executable, "-S", "-c", "import time; time.sleep(600)"), announces_ready=True)
    given = beside_given_servers(plan, *plan.programs, never)
    states: list[UpState] = []

    def interrupt(line: str) -> None:
        assert line.startswith("agent is ready")
        states.append(state_of(plan))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        up_detached(given, environ=os.environ, say=interrupt)

    assert marked(states[0].marker) == []
    assert not states[0].running
    assert read_state(UpFolder(plan.folder)) is None


def test_foreground_up_stops_everything_on_a_signal(plan: UpPlan) -> None:
    states: list[UpState] = []

    def ready() -> None:
        states.append(state_of(plan))
        os.kill(os.getpid(), signal.SIGTERM)

    up(beside_given_servers(plan, *plan.programs), environ=os.environ, say=lambda _: None, ready=ready)

    assert states[0].phase is Phase.READY
    assert marked(states[0].marker) == []
    assert read_state(UpFolder(plan.folder)) is None


def test_given_servers_are_used_and_a_supervisor_that_hangs_is_killed_by_down(plan: UpPlan) -> None:
    state = up_detached(beside_given_servers(plan, *plan.programs), environ=os.environ, say=lambda _: None)
    assert [child.name for child in state.children] == ["agent"]
    assert "CODITECT_AMQP_URL=amqp://127.0.0.1:9\n" in UpFolder(plan.folder).env.read_text()

    os.kill(state.supervisor.pid, signal.SIGSTOP)

    down(plan.folder, within_seconds=0.2)

    assert marked(state.marker) == []
    assert not state.running
