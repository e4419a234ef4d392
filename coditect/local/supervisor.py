"""The process supervisor: starts children in order, restarts those that die, and stops them in reverse order.

The supervisor is one asyncio task group in the thread that runs the loop; each child has a keeper, a task that spawns,
waits for the end and spawns again (the first time at once, then with growing delay). Whatever happens to the
supervisor, its children end with it: the kernel kills them with their parent (Linux), and the watchdog, a process of
its own, kills the rest when the supervisor's end of a pipe closes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from coditect.agent.process import ProcessId, RestartPolicy, ended_if_stopped, identify
from coditect.aio import launch
from coditect.aio.supervisor import happened
from coditect.local import watchdog
from coditect.local.errors import StartFailed
from coditect.local.state import ChildState, Phase, open_private
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
            with suppress(TimeoutError):
                self._popen.terminate()
                await asyncio.wait_for(self.exited(), self.child.stop_within_seconds)
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


logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""A function that shows the user one line of text."""


@dataclass(slots=True)
class _Post:
    """The record of one child in a supervisor: its state, its running process, and how often in a row it died."""

    child: Child
    state: ChildState
    running: RunningChild | None = None
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    was_ready: bool = False
    ready_at: float | None = None
    deaths: int = 0
    failure: StartFailed | None = None


class ProcessSupervisor:
    """The supervisor of child processes, from the start to the end of `run`; for one run only."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        marker: str,
        log_folder: Path,
        policy: RestartPolicy | None = None,
        changed: Callable[[], None] = lambda: None,
        say: Say = lambda _: None,
    ) -> None:
        self._posts = [_Post(child, ChildState(child.name, Phase.WAITING)) for child in children]
        self._marker = marker
        self._log_folder = log_folder
        self._policy = policy or RestartPolicy()
        self._changed = changed
        self._say = say

    @property
    def children(self) -> tuple[ChildState, ...]:
        """The present state of every child, in the given order of the children."""
        return tuple(post.state for post in self._posts)

    async def run(self, *, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Start all children, call `ready` when all are ready, restart those that die, and stop all when `stop` is set.

        The children of one stage are ready before the next stage starts; they are stopped in reverse order.

        Raises:
            StartFailed: a child died repeatedly, or was not ready in time; the others have been stopped.
        """
        failure: StartFailed | None = None
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    await self._start_all(group, stop)
                    if not stop.is_set():
                        ready()
                    await stop.wait()
                except StartFailed as error:
                    failure = error
                finally:
                    await self._stop_all()
        finally:
            for post in self._posts:
                if post.running is not None:
                    post.running.kill()
        if failure is not None:
            raise failure

    async def _start_all(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        for stage in self._stages():
            for post in stage:
                group.create_task(self._keep(post), name=f"keep {post.child.name}")
            while not all(post.was_ready for post in stage) and not stop.is_set():
                failed = next((post.failure for post in stage if post.failure), None)
                if failed is not None:
                    raise failed
                await happened(stop, POLL_SECONDS)
            if stop.is_set():
                return

    async def _stop_all(self) -> None:
        for stage in reversed(self._stages()):
            for post in stage:
                post.leave.set()
                self._note(post, phase=Phase.STOPPING)
            async with asyncio.TaskGroup() as group:
                for post in stage:
                    if post.running is not None:
                        group.create_task(post.running.stop())
            for post in stage:
                self._note(post, phase=Phase.STOPPED, process=None)

    def _stages(self) -> list[list[_Post]]:
        stages = sorted({post.child.stage for post in self._posts})
        return [[post for post in self._posts if post.child.stage == stage] for stage in stages]

    async def _keep(self, post: _Post) -> None:
        while not post.leave.is_set():
            began, post.ready_at = time.monotonic(), None
            post.running = spawn(post.child, marker=self._marker, log_folder=self._log_folder)
            self._note(
                post,
                phase=Phase.RESTARTING if post.state.restarts else Phase.STARTING,
                process=post.running.process,
                log=str(post.running.log),
            )
            stopped = self._policy.stopped_seconds
            async with ended_if_stopped(post.running.process.pid, name=post.child.name, bound_seconds=stopped):
                await self._until_ready(post, began)
                code = await post.running.exited()
            if post.leave.is_set():
                return
            await asyncio.to_thread(post.running.kill)
            now = time.monotonic()
            await self._after_death(post, code, worked_seconds=0.0 if post.ready_at is None else now - post.ready_at)

    async def _until_ready(self, post: _Post, began: float) -> None:
        """Wait until a child is ready, dead, about to be stopped, or killed because it was not ready in time."""
        running = post.running
        assert running is not None
        while running.exit_code is None and not post.leave.is_set():
            elapsed = time.monotonic() - began
            if await self._is_ready(post.child, elapsed) and running.exit_code is None:
                post.was_ready, post.ready_at = True, time.monotonic()
                self._note(post, phase=Phase.READY)
                self._say(f"{post.child.name} is ready after {elapsed:.1f} s")
                return
            if elapsed > post.child.ready_within_seconds:
                self._fail_first_start(post, "was not ready in time")
                running.kill()
                return
            await happened(post.leave, POLL_SECONDS)

    async def _is_ready(self, child: Child, elapsed: float) -> bool:
        if child.ready is None:
            return elapsed >= self._policy.settle_seconds
        return await child.ready()

    async def _after_death(self, post: _Post, code: int, *, worked_seconds: float) -> None:
        post.deaths = self._policy.deaths_in_a_row(post.deaths, worked_seconds=worked_seconds)
        if post.deaths >= self._policy.start_attempts:
            self._fail_first_start(post, f"ended with exit code {code}")
        delay = self._policy.delay(post.deaths)
        facts = {"child": post.child.name, "exit_code": code, "delay_seconds": delay}
        logger.warning("A child ended by itself and is started again", extra=facts)
        self._say(f"{post.child.name} ended (exit code {code}), starting it again")
        self._note(post, phase=Phase.RESTARTING, process=None, restarts=post.state.restarts + 1, last_exit=code)
        if delay:
            await happened(post.leave, delay)

    def _fail_first_start(self, post: _Post, reason: str) -> None:
        if not post.was_ready and post.running is not None and post.failure is None:
            post.failure = StartFailed(
                "A program could not be started",
                program=post.child.name,
                reason=reason,
                log=last_lines(post.running.log),
                fix=f"  The whole log: {post.running.log}",
            )

    def _note(self, post: _Post, **changes: object) -> None:
        post.state = replace(post.state, **changes)  # type: ignore[arg-type]  # replace() checks the names
        self._changed()


@contextmanager
def guarded(marker: str) -> Iterator[ProcessId]:
    """Run a watchdog process and yield its id; when the block or this process ends, it kills what has the marker.

    That is every process of the user whose environment variable CODITECT_STARTED_BY, or name, begins with `marker`.
    """
    popen = subprocess.Popen(
        [sys.executable, "-I", watchdog.__file__, marker, str(os.getpid())],
        env={name: text for name, text in os.environ.items() if name.endswith("LD_LIBRARY_PATH")},  # no secrets
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert popen.stdin is not None
    try:
        yield identify(popen.pid) or ProcessId(popen.pid, "")
    finally:
        popen.stdin.close()
        popen.wait()
