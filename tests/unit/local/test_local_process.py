import os
import subprocess
import sys

from coditect.agent.process import ProcessId, identify, is_running


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
