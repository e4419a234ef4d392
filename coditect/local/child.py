"""A program that a supervisor keeps running, and the process that runs it now."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from coditect.agent.processes.process import ProcessId, identify
from coditect.aio import launch
from coditect.local.state import open_private
from coditect.local.watchdog import MARKER, kill_marked

Probe = Callable[[], Awaitable[bool]]
"""A function that returns whether the program works now, within two seconds and without raising."""

LOG_ROTATE_BYTES = 10_000_000
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Child:
    """A program that a supervisor keeps running: its command, its readiness probe, and how it is stopped.

    `env` is the whole environment. Children of a lower `stage` are ready before the next stage starts, and are stopped
    after it. A `ready_file` of the process before is removed before each start. Without a probe the program counts as
    ready when it has run for one second.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    folder: Path
    ready: Probe | None = None
    ready_within_seconds: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within_seconds: float = 20.0
    stage: int = 0
    ready_file: Path | None = None
    umask: int = 0o077
    """The bits that are missing in the modes of new files; -1: those of the supervisor."""


class RunningChild:
    """The process of a supervised program, in its own session; on Linux it dies with the thread that started it."""

    __slots__ = ("_popen", "_prefix", "child", "log", "logged", "process")

    def __init__(self, child: Child, popen: subprocess.Popen[bytes], *, prefix: str, log: Path, logged: int) -> None:
        self.child = child
        self.log = log
        self.logged = logged
        """The size of the log in bytes when the process was started: what comes after it is the process's own."""
        self.process = identify(popen.pid) or ProcessId(popen.pid, "")
        self._popen = popen
        self._prefix = prefix

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._popen.poll()

    async def exited(self) -> int:
        """Wait until the process itself has ended, and return its exit code."""
        if self._popen.poll() is None:
            await _end_of(self._popen)
        return self._popen.wait()

    async def stop(self) -> None:
        """Ask the process to end, wait `child.stop_within_seconds` at most, then kill it and all that it started."""
        try:
            if self._popen.poll() is None:
                self._popen.send_signal(self.child.stop_signal)
                await asyncio.wait_for(self.exited(), self.child.stop_within_seconds)
        except TimeoutError:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the process and everything that it started, at once."""
        self._popen.poll()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        kill_marked(self._prefix)


def spawn(child: Child, *, marker: str, log_folder: Path) -> RunningChild:
    """Start a supervised program; append its output to a log file, and mark it by an environment variable.

    By that variable, or a name made of it, the watchdog finds the process and all that it starts.
    """
    log_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = log_folder / f"{child.name}.log"
    if log.exists() and log.stat().st_size > LOG_ROTATE_BYTES:
        log.replace(log.with_suffix(".log.1"))
    if child.ready_file:
        child.ready_file.unlink(missing_ok=True)
    prefix = f"{marker}:{os.urandom(3).hex()}:"  # with a short marker as long as a name, but for the last colon
    with open(log, "ab", opener=open_private) as output:
        logged = output.tell()
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *child.argv],
            env={**child.env, MARKER: f"{prefix}{child.name}:"},
            cwd=child.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=child.umask,
        )
    return RunningChild(child, popen, prefix=prefix, log=log, logged=logged)


def last_lines(log: Path, count: int = 15, *, since: int = 0) -> str:
    """Return a log file's last lines, indented, but none of its first `since` bytes; an empty text without a log."""
    if not log.exists():
        return ""
    with log.open("rb") as lines:
        lines.seek(max(since, log.stat().st_size - 16_384))
        tail = lines.read().decode(errors="replace").splitlines()[-count:]
    return "\n".join(f"  | {line}" for line in tail)


async def _end_of(popen: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process without reaping it: by a pid descriptor on Linux, else by polling."""
    try:
        descriptor = os.pidfd_open(popen.pid)
    except (AttributeError, OSError):
        while popen.poll() is None:  # noqa: ASYNC110 - nothing tells of the end here
            await asyncio.sleep(POLL_SECONDS)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
