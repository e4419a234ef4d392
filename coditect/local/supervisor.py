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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from coditect.agent.processes.process import ProcessId, ended_if_stopped, identify
from coditect.agent.processes.restarts import RestartPolicy
from coditect.local import watchdog
from coditect.local.child import POLL_SECONDS, Child, RunningChild, last_lines, spawn
from coditect.local.errors import StartFailed
from coditect.local.state import ChildState, Phase

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


async def happened(event: asyncio.Event, within_seconds: float) -> bool:
    """Wait for an event; return whether it was set within the given time."""
    try:
        await asyncio.wait_for(event.wait(), within_seconds)
    except TimeoutError:
        return False
    return True


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
