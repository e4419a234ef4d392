"""Child processes that a parent keeps running: their identity, when to restart them, and the copies of one agent.

A process is identified by pid *and* start time, so that a reused pid is never mistaken for the earlier process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from coditect.aio.supervisor import Backoff, happened

log = logging.getLogger(__name__)

STOPPED_CHECKS = 10
"""Number of checks within the time for which a process may stand stopped."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """The identity of a process until the machine's next boot: pid and start time, unique in that time."""

    pid: int
    started: str


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the process that has the pid now; None when there is none, or only a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid, _start_of(process))
    except psutil.NoSuchProcess:
        return None


def is_running(process: ProcessId) -> bool:
    """Tell whether exactly the identified process still runs; a zombie does not run."""
    return identify(process.pid) == process


@asynccontextmanager
async def ended_if_stopped(pid: int, *, name: str, bound_seconds: float) -> AsyncIterator[None]:
    """Kill a process that stays stopped (SIGSTOP) for `bound_seconds` inside the block; with 0 never kill it.

    A process that runs and hangs ends itself (`loop_watchdog`); a stopped one cannot.
    """
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(_end_if_stopped(pid, name, bound_seconds)) if bound_seconds else None
        try:
            yield
        finally:
            if looking is not None:
                looking.cancel()


async def _end_if_stopped(pid: int, name: str, bound_seconds: float) -> None:
    looks = 0
    while looks < STOPPED_CHECKS:
        await asyncio.sleep(bound_seconds / STOPPED_CHECKS)
        looks = looks + 1 if _stands_stopped(pid) else 0
    log.warning("A process that stood stopped is killed", extra={"program": name, "pid": pid})
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _stands_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _start_of(process: psutil.Process) -> str:
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return repr(process.create_time())
    # Ticks since boot do not move when somebody sets the clock; the name before them may hold spaces.
    try:
        return stat.read_text(errors="replace").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The rule for when a dead child process is started again, and after how many early deaths it is given up.

    The delay before restart n is 0, then `first_seconds`, doubled each time up to `cap_seconds`; after
    `healthy_seconds` of work the delay of a child starts from 0 again. A child that dies `start_attempts` times in a
    row before it was ever ready has failed to start. A child that stands stopped for `stopped_seconds` is killed and
    started again.
    """

    first_seconds: float = 0.5
    cap_seconds: float = 5.0
    healthy_seconds: float = 10.0
    start_attempts: int = 3
    settle_seconds: float = 1.0
    stopped_seconds: float = 10.0

    def deaths_in_a_row(self, before: int, *, worked_seconds: float) -> int:
        """Return the deaths in a row, counting a new one: 1 when the process had worked for `healthy_seconds`."""
        return 1 if worked_seconds >= self.healthy_seconds else before + 1

    def delay(self, deaths_in_a_row: int) -> float:
        """Return the seconds to wait before the next start of a process that died so many times in a row."""
        return 0.0 if deaths_in_a_row <= 1 else Backoff(self.first_seconds, self.cap_seconds).pause(deaths_in_a_row - 1)


# Several processes of one agent under one parent: started, restarted after a death, and drained together.
#
# A process that is alive and does nothing ends itself (`loop_watchdog`); the parent ends a process that stands stopped.
#
# A process that was drained alone (`coditect agent drain`) says so in its file `BEGAN`, ends with 0 and stays away. A
# process that ends otherwise is started again after a growing pause, even if its exit code is 0: a handler may have
# sent it a SIGTERM. A process that dies five times in a row (`COPY_POLICY`) ends the whole with its exit code, so that
# the supervisor of the parent sees the death. The processes end with the parent, also when the parent is killed
# (`aio/launch.py`).

PARENT = "CODITECT_PARENT_PID"
"""The environment variable with the pid of the parent; the process ends when the parent does."""
BEGAN = "CODITECT_BEGAN_FILE"
"""The environment variable with the path of the file that the process creates once it is ready."""
_DRAINED = "drained"
"""The content of that file when a message asked the process to drain."""
COPY_POLICY = RestartPolicy(start_attempts=5)


class Processes:
    """The parent of `count` processes of one command: restarts one that dies, and ends all if one keeps dying."""

    def __init__(
        self, command: Sequence[str], count: int, *, stall_seconds: float = 0.0, policy: RestartPolicy = COPY_POLICY
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
            if await happened(self._stop, self._policy.delay(deaths)):
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
