"""Programs of the project in processes of their own, each forked from one that has imported it already.

A start by the interpreter costs half a second or more of imports, and the tests start a thousand programs.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

IMPORTED = [
    "coditect.cli.main",
    "coditect.cli.agent",
    "coditect.cli.dispatcher",
    "coditect.agent.program",
    "coditect.api.program",
    "dispatcher.program",
]


@dataclass(frozen=True, slots=True)
class Program:
    """A running or ended program, with the methods of `subprocess.Popen` that tests call."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code of the program, once it has ended.

        Raises:
            TimeoutExpired: when it has not ended after so many seconds.
        """
        self.process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended since, and is reaped by the process that forked it
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def begin(
    module: str, *arguments: str, environment: Mapping[str, str], errors: Path, output: Path | None = None
) -> Program:
    """Start `python -m MODULE ARGUMENTS` with this environment, no input, and its errors and output in the files."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    files = {0: os.devnull, 2: str(errors)} | ({} if output is None else {1: str(output)})
    process = context.Process(target=_run, args=([module, *arguments], dict(environment), files), daemon=True)
    process.start()
    return Program(process)


def _run(words: Sequence[str], environment: Mapping[str, str], files: Mapping[int, str]) -> None:
    for descriptor, path in files.items():
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if descriptor else os.O_RDONLY, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(words)
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
