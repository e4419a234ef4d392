import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from coditect.agent.processes.process import identify, is_running
from coditect.aio import launch
from coditect.local.supervisor import guarded
from coditect.local.watchdog import MARKER, kill_marked, marked

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def start_marked(marker: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env={**os.environ, MARKER: f"{marker}:one:"}, start_new_session=True)


def test_only_what_carries_the_marker_is_killed() -> None:
    ours, other = start_marked(marker := uuid.uuid4().hex), start_marked(uuid.uuid4().hex)

    killed = kill_marked(f"{marker}:")

    assert killed == 1
    assert ours.wait() == -9
    assert other.poll() is None
    other.kill()
    other.wait()


def test_end_of_the_guarded_block_kills_what_is_left() -> None:
    marker = uuid.uuid4().hex

    with guarded(marker) as watchdog:
        child = start_marked(marker)
        assert is_running(watchdog)

    assert child.wait() == -9
    assert not is_running(watchdog)


def test_kill_of_the_guarding_process_kills_what_it_started(tmp_path: Path) -> None:
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
        assert len(marked(f"{marker}:")) == 1
        parent.kill()
        parent.wait()

    deadline = time.monotonic() + 60
    while marked(f"{marker}:"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_program_whose_parent_is_gone_does_not_start() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", launch.__file__, "1", *SLEEP], check=False)

    assert done.returncode == 1


def test_launched_program_is_the_process_itself() -> None:
    command = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
    child = subprocess.Popen([*command, sys.executable, "-S", "-c", "import os; print(os.getpid())"], stdout=-1)

    out, _ = child.communicate()

    assert int(out) == child.pid
    assert identify(child.pid) is None
