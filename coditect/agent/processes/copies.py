"""Several processes of one agent under one parent: started, restarted after a death, and drained together.

A process that is alive and does nothing ends itself (`loop_watchdog`); the parent ends a process that stands stopped.

A process that was drained alone (`coditect agent drain`) says so in its file `BEGAN`, ends with 0 and stays away. A
process that ends otherwise is started again after a growing pause, even if its exit code is 0: a handler may have sent
it a SIGTERM. A process that dies five times in a row (`POLICY`) ends the whole with its exit code, so that the
supervisor of the parent sees the death. The processes end with the parent, also when the parent is killed
(`aio/launch.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from coditect.agent.processes.process import ended_if_stopped
from coditect.agent.processes.restarts import RestartPolicy

log = logging.getLogger(__name__)

PARENT = "CODITECT_PARENT_PID"
"""The environment variable with the pid of the parent; the process ends when the parent does."""
BEGAN = "CODITECT_BEGAN_FILE"
"""The environment variable with the path of the file that the process creates once it is ready."""
_DRAINED = "drained"
"""The content of that file when a message asked the process to drain."""
POLICY = RestartPolicy(start_attempts=5)


class Processes:
    """The parent of `count` processes of one command: restarts one that dies, and ends all if one keeps dying."""

    def __init__(
        self, command: Sequence[str], count: int, *, stall_seconds: float = 0.0, policy: RestartPolicy = POLICY
    ) -> None:
        self._policy = policy
        self._stall_seconds = stall_seconds
        self._command = command
        self._count = count
        self._running: set[Process] = set()
        self._stop = asyncio.Event()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to every process, which then drains and ends, and restart none any more; may be repeated."""
        self._stop.set()
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def run(self) -> int:
        """Run the processes until all have ended; return 0, or the exit code of one that could not be kept running."""
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep()) for _ in range(self._count)]
        return max(keeper.result() for keeper in keepers)

    async def _keep(self) -> int:
        deaths = 0
        while True:
            code, worked_seconds, drained = await self._run_one()
            if (code == 0 and drained) or (self._stop.is_set() and code in (0, -signal.SIGTERM, -signal.SIGINT)):
                return 0
            deaths = self._policy.deaths_in_a_row(deaths, worked_seconds=worked_seconds)
            if self._stop.is_set() or deaths >= self._policy.start_attempts:
                log.error("An agent process cannot be kept running", extra={"exit_code": code, "deaths": deaths})
                self.stop()
                return code if code > 0 else 128 - code if code else 1
            log.warning("An agent process died and is started again", extra={"exit_code": code, "deaths": deaths})
            if await self._stopped_within(self._policy.delay(deaths)):
                return 0

    async def _run_one(self) -> tuple[int, float, bool]:
        """Run one process to its end; return its exit code, the seconds since it was ready, and if it was drained.

        The seconds are 0 if it was never ready.
        """
        with TemporaryDirectory() as folder:
            began = Path(folder) / "began"
            env = {**os.environ, PARENT: str(os.getpid()), BEGAN: str(began)}
            code = await self._wait_for(await asyncio.create_subprocess_exec(*self._command, env=env))
            if not began.exists():
                return code, 0.0, False
            return code, time.time() - began.stat().st_mtime, began.read_text() == _DRAINED

    async def _wait_for(self, process: Process) -> int:
        self._running.add(process)
        try:
            if self._stop.is_set():  # the signal came while it was being started
                self.stop()
            async with ended_if_stopped(process.pid, name="agent", bound_seconds=self._stall_seconds):
                return await process.wait()
        finally:
            self._running.discard(process)

    async def _stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()


def say_drained() -> None:
    """Tell the parent, if this is one of several processes, that a message drains this one: it is not started again."""
    if path := os.environ.get(BEGAN):
        Path(path).write_text(_DRAINED)


async def keep_processes(command: Sequence[str], count: int, *, stall_seconds: float) -> int:
    """Run `count` processes of a command until all have ended; SIGTERM or SIGINT drains them; return the exit code."""
    processes = Processes(command, count, stall_seconds=stall_seconds)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, processes.stop, number)
    return await processes.run()
