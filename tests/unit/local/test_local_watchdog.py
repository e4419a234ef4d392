"""Processes are told apart, marked, and killed with their supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from coditect.agent.process import ProcessId, identify, is_running
from coditect.aio import launch
from coditect.local.supervisor import Child, guarded, spawn
from coditect.local.watchdog import MARKER, kill_marked, marked, new_marker
from tests.servers import ROOT

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]

HIDDEN = """
import os, time
from coditect.aio.launch import begin_program
begin_program()
print(os.getpid(), flush=True)
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
time.sleep(600)
"""
AS_NOBODY = f"""
import os, signal, sys
from coditect.aio.launch import begin_program
from coditect.local.watchdog import kill_marked, marked
ready, up = os.pipe()
if (child := os.fork()) == 0:
    os.setuid(65534)
    begin_program()
    os.write(up, b".")
    signal.pause()
os.read(ready, 1)
if (looker := os.fork()) == 0:
    os.setuid(65534)
    prefix = os.environ["{MARKER}"].partition(":")[0] + ":"
    os._exit(0 if [one.pid for one in marked(prefix)] == [child] and kill_marked(prefix) == 1 else 1)
print(os.waitpid(looker, 0)[1])
os.kill(child, signal.SIGTERM)
print(os.waitpid(child, 0)[1])
"""


def start_marked(marker: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env={**os.environ, MARKER: f"{marker}:one:"}, start_new_session=True)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def two_pids(log: Path) -> list[int]:
    until(lambda: log.read_text().count("\n") == 2)
    return [int(line) for line in log.read_text().splitlines()]


def by_name(prefix: str) -> set[int]:
    """Return the processes whose name has the mark, which is all that who is not root can see of them."""
    return {process.pid for process in marked(prefix) if process.name().startswith(prefix)}


def test_only_what_carries_the_marker_is_killed() -> None:
    ours, other = start_marked(marker := uuid.uuid4().hex), start_marked(uuid.uuid4().hex)

    killed = kill_marked(f"{marker}:")

    assert killed == 1
    assert ours.wait() == -9
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hides an environment")
def test_program_that_hides_its_environment_is_killed_with_what_it_forked(tmp_path: Path) -> None:
    marker = new_marker()
    children = [
        Child(name, (sys.executable, "-c", HIDDEN), {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path)
        for name in ("dispatcher-1", "dispatcher-2")
    ]
    first, second = (spawn(child, marker=marker, log_folder=tmp_path) for child in children)
    pids = [two_pids(child.log) for child in (first, second)]

    assert by_name(f"{marker}:") == {*pids[0], *pids[1]}
    first.kill()
    assert by_name(f"{marker}:") == {*pids[1]}
    second.kill()
    assert by_name(f"{marker}:") == set()


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root may become somebody else")
def test_user_who_is_not_root_kills_what_hides_its_environment() -> None:
    environment = {**os.environ, MARKER: f"{new_marker()}:abcdef:one:"}

    done = subprocess.run([sys.executable, "-c", AS_NOBODY], cwd=ROOT, env=environment, capture_output=True, check=True)

    assert done.stdout.split() == [b"0", b"9"]


def test_end_of_the_guarded_block_kills_what_is_left() -> None:
    marker = uuid.uuid4().hex

    with guarded(marker) as watchdog:
        child = start_marked(marker)
        assert is_running(watchdog)

    assert child.wait() == -9
    assert not is_running(watchdog)


def test_kill_of_the_guarding_process_kills_what_it_started() -> None:
    marker = uuid.uuid4().hex
    program = f"""
import os, subprocess, sys, time
from coditect.local.supervisor import guarded
with guarded({marker!r}):
    subprocess.Popen({SLEEP!r}, env=dict(os.environ, {MARKER}="{marker}:one:"), start_new_session=True)
    print("started", flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"started\n"
        until(lambda: len(marked(f"{marker}:")) == 1)  # a program that has just begun has no environment for a moment
        parent.kill()
        parent.wait()

    until(lambda: not marked(f"{marker}:"))


def test_program_whose_parent_is_gone_does_not_start() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", launch.__file__, "1", *SLEEP], check=False)

    assert done.returncode == 1


def test_launched_program_is_the_process_itself() -> None:
    command = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
    child = subprocess.Popen([*command, sys.executable, "-S", "-c", "import os; print(os.getpid())"], stdout=-1)

    out, _ = child.communicate()

    assert int(out) == child.pid
    assert identify(child.pid) is None


def test_process_is_equal_to_itself_and_another_one_has_its_pid_later() -> None:
    me = identify(os.getpid())

    assert me is not None
    assert identify(os.getpid()) == me
    assert is_running(me)
    assert not is_running(ProcessId(me.pid, "another start"))


def test_zombie_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    found = identify(child.pid)

    child.wait()
    assert found is None
    assert identify(child.pid) is None
