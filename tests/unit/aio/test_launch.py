"""SIGTERM ends a program that is starting, also as a container's first process; nobody else may read its secrets."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.servers import ROOT, STARTUP
from tests.support import eventually

SLOW_AGENT = """
import pathlib, time
pathlib.Path("begun").touch()
time.sleep(600)
"""
IDLE_AGENT = """
from coditect import Agent
agent = Agent("idle")
"""
COMMANDS = {
    "agent": ("coditect", "agent", "run", "idle.py"),
    "dispatcher": ("dispatcher",),
    "dispatcher run": ("coditect", "dispatcher", "run"),
    "api": ("coditect", "api", "--port", "0"),
}
FIRST = ("unshare", "--pid", "--fork", "--kill-child")
"""The command that runs another as process 1 of a namespace of its own."""
DUMPABLE = """
import ctypes
from coditect.aio.launch import begin_program
before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
begin_program()
print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@dataclass(frozen=True)
class Started:
    """A program that was started, and the process that runs it, which may be a child of that."""

    popen: subprocess.Popen[bytes]
    is_first: bool

    @property
    def process(self) -> psutil.Process | None:
        outer = psutil.Process(self.popen.pid)
        return next(iter(outer.children()), None) if self.is_first else outer

    def end(self, number: signal.Signals) -> int:
        """Send a signal; return the exit code as a shell shows it."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.popen.wait(30)
        return code if code >= 0 else 128 - code


Start = Callable[..., Started]


@pytest.fixture(params=[False, True], ids=["by a shell", "as process 1"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    is_first: bool = request.param
    if is_first and not (shutil.which(FIRST[0]) and subprocess.run([*FIRST, "true"], check=False).returncode == 0):
        pytest.skip("this user may not make a namespace of processes")
    (tmp_path / "slow.py").write_text(SLOW_AGENT)
    (tmp_path / "idle.py").write_text(IDLE_AGENT)
    with ExitStack() as stack:

        def begin(*command: str, **settings: str) -> Started:
            argv = [*(FIRST if is_first else ()), sys.executable, "-m", *command]
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{STARTUP}{os.pathsep}{ROOT}", **settings}
            popen = subprocess.Popen(argv, cwd=tmp_path, env=environment)
            stack.callback(popen.wait)
            stack.callback(popen.kill)
            return Started(popen, is_first)

        yield begin


async def test_sigterm_ends_a_program_that_is_importing(start: Start, tmp_path: Path) -> None:
    started = start("coditect", "agent", "run", "slow.py")
    await eventually((tmp_path / "begun").exists)

    assert started.end(signal.SIGTERM) == 128 + signal.SIGTERM


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_signal_ends_a_program_that_waits_for_its_broker(start: Start, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        broker.settimeout(60)
        url = f"amqp://127.0.0.1:{broker.getsockname()[1]}/"
        started = start(*command, CODITECT_AMQP_URL=url, CODITECT_STORE_URL="memory:")
        silent, _ = broker.accept()  # the program now waits for the first word
        with silent:
            assert started.end(signal.SIGTERM if started.is_first else signal.SIGINT) == 0


@pytest.mark.parametrize("package", ["dispatcher", "coditect"])
def test_package_of_a_program_imports_little_before_the_program_handles_signals(package: str) -> None:
    loaded = "import sys, {0}.__main__; print(*(one for one in sys.modules if one.startswith('{0}.')))"

    command = [sys.executable, "-c", loaded.format(package)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    assert set(found) <= {f"{package}.__main__", "coditect.aio", "coditect.aio.launch"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a request")
def test_program_is_not_dumpable() -> None:
    command = [sys.executable, "-c", DUMPABLE]

    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() == ["1", "0"]
