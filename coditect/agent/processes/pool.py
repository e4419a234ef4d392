"""Worker processes of handlers: started when needed, reused, and killed with their process group by a timeout."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from typing import Any

import psutil

from coditect.agent.declaration import Capability
from coditect.agent.handlers.context import TaskContext
from coditect.agent.processes.protocol import Frame, FrameKind, receive
from coditect.agent.processes.rpc import WorkerRpc, error_in
from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError, InvalidTask, Retryable, SetupError
from coditect.model.task import Task
from coditect.wire import routing
from coditect.wire.tasks import task_message

log = logging.getLogger(__name__)

STREAM_BYTES = 4 * 1024 * 1024
STDERR = 2
PROCESS_DIED = "process_died"
"""The failure reason of an attempt whose process died before the result."""
START_SECONDS = 60.0
"""How long a worker process may take to load the agent's file."""
EXIT_SECONDS = 2.0
"""How long a worker process whose link to the agent has ended may take to end itself."""

STOP_SECONDS = 5.0
"""How long a worker process may take to close its lifespan when the agent ends, or when it is replaced."""


class ProcessDied(CoditectError):
    """The error of a handler's process that ended before its result: killed, out of memory, or by its own exit."""

    retryable = True


class WorkerUnavailable(Retryable):
    """The error of a handler whose process could not be started, or was ended as too many tasks wait without a slot.

    In the first case the handler did not run.
    """


class RemoteError(Exception):
    """An exception that a handler raised in its worker process, with its type name and traceback as text."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts.get("message", ""))
        self.remote_type = str(facts.get("type", ""))
        self.remote_traceback = str(facts.get("traceback", ""))
        self.remote_fix = str(facts.get("fix", ""))
        self.retryable = facts.get("retryable") is not False
        """Whether the capability's retry policy tries the failure again."""
        asked = facts.get("retry_after")
        self.delay_seconds = float(asked) if isinstance(asked, int | float) else None
        """The delay that a `RetryAfter` of the handler asked for; None for any other exception."""


class Worker:
    """A worker process for one handler, which runs one task at a time."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Take a process, and the streams of the agent's end of the link to the process."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self.tasks = 0
        """How many tasks the process has begun."""

    @property
    def alive(self) -> bool:
        """True when the worker process has not ended."""
        return self._process.returncode is None

    @property
    def resident_bytes(self) -> int:
        """The memory that the worker process holds, without that of its children; 0 when it has ended."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def loaded(self) -> None:
        """Wait until the worker process has loaded the handler.

        Raises:
            SetupError: when the process cannot load the handler.
            WorkerUnavailable: when the process ended, or was not ready within `START_SECONDS`; retryable.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                frame = await receive(self._reader)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            raise WorkerUnavailable("The handler's process did not start") from error
        if frame.kind is FrameKind.UNUSABLE:
            raise SetupError(
                "The handler cannot be loaded into a process of its own",
                reason=str(frame.head),
                fix="declare agent and handler when a file or module is imported, and run the agent from that file",
            )

    async def call(self, task: Task, context: TaskContext) -> bytes:
        """Run one task in the worker process, and return the body of the result.

        Raises:
            RemoteError: when the handler raised an exception.
            InvalidTask: when the input does not fit the handler's type.
            ProcessDied: when the process ended before the result.
            BaseExceptionGroup: with `SentBack`, when a request of the handler could not be suspended.
        """
        self.tasks += 1
        async with asyncio.TaskGroup() as group:
            worker_rpc = WorkerRpc(context.services, group, self._send)
            try:
                ended = await self._converse(task, context, worker_rpc)
            finally:
                worker_rpc.cancel()
        if isinstance(ended, Exception):
            raise ended
        return ended

    async def _converse(self, task: Task, context: TaskContext, worker_rpc: WorkerRpc) -> bytes | Exception:
        head = {
            "key": routing.key_of(task),
            "headers": dict(task_message(replace(task, claims=None)).headers),
            "own": dict(context.headers),
            "task_id": context.task_id,
            "agent_id": context.agent_id,
            "workspace": str(context.workspace),
            "now_ms": context.services.now_ms(),
        }
        try:
            self._send(Frame(FrameKind.TASK, head, task.body))
            await self._writer.drain()
            while (frame := await receive(self._reader)).kind not in (FrameKind.VALUE, FrameKind.FAILURE):
                worker_rpc.run(frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            return await self._end_of_link()
        except Exception as error:  # noqa: BLE001 - raised in the group, it would be an anonymous ExceptionGroup
            return error
        return frame.body if frame.kind is FrameKind.VALUE else _remote(frame.head)

    async def _end_of_link(self) -> ProcessDied:
        """Return why the link ended: with its process, or because the handler closed a descriptor that is not its own.

        In the second case nothing that the handler still does could be heard, so its process is killed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                return _died(await self._process.wait())
        await self.kill()
        return ProcessDied("The handler's process closed its link to the agent", fix="close only what you opened")

    def _send(self, frame: Frame) -> None:
        self._writer.write(frame.packed())

    async def stop(self, seconds: float) -> None:
        """Let the idle worker process close its lifespan and end; wait at most so many seconds, and kill nothing."""
        with suppress(OSError):  # the process has ended
            self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()

    async def kill(self) -> None:
        """Kill the worker process and its whole process group."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("The handler's process was gone already", extra={"pid": self._process.pid})
        self._writer.close()
        await self._process.wait()


def _died(code: int) -> ProcessDied:
    sentence = "The handler's process ended before its result"
    if code < 0:
        return ProcessDied(sentence, signal=_signal_name(-code))
    return ProcessDied(sentence, exit_code=code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def _remote(facts: dict[str, Any]) -> Exception:
    if facts.get("invalid_input"):
        return InvalidTask(str(facts.get("message", "")))
    return error_in(facts["refusal"]) if facts.get("refusal") else RemoteError(facts)


class Workers:
    """The worker processes of one agent, each of which runs one task after another of a single capability.

    `source` is the file or module that declares the agent; without a source each handler's own file is loaded.
    """

    def __init__(self, background: Supervisor, source: str | None = None, lifespan: object = None) -> None:
        self._background = background
        self._source = source
        self._stop_seconds = 0.0 if lifespan is None else STOP_SECONDS
        self._idle: dict[str, list[Worker]] = {}
        self._busy: set[Worker] = set()
        self._successors: dict[str, list[asyncio.Task[None]]] = {}
        """The starts of processes that replace others, by capability, which no task waits for yet."""
        self._closed = False

    async def run(self, capability: Capability, task: Task, context: TaskContext) -> bytes:
        """Run one task in an idle or a new worker process of its capability, and return the body of the result.

        A cancellation, as by a timeout, kills the process. A process over the limits of its capability is replaced
        after the task; the next one is started while the last task that it may run still runs.

        Raises:
            CoditectError: the errors of `start` and `Worker.call`.
            RemoteError: when the handler raised an exception.
        """
        worker, limits = await self._next(capability), capability.process_limits
        self._busy.add(worker)
        if limits is not None and limits.last(worker.tasks):
            self._succeed(capability)
        try:
            body = await worker.call(task, context)
        except (RemoteError, InvalidTask):
            self._keep(capability, worker)
            raise
        except BaseException:
            await asyncio.shield(self.end(worker))
            raise
        else:
            self._keep(capability, worker)
            return body

    async def start(self, capability: Capability) -> Worker:
        """Start a new worker process and return it once it has loaded the handler; the caller ends the process.

        Raises:
            SetupError: when the handler cannot be loaded.
            WorkerUnavailable: when the process could not be started; retryable.
        """
        worker = await _spawn(self._source or _source_file(capability), capability)
        self._busy.add(worker)
        try:
            await worker.loaded()
        except BaseException:
            await asyncio.shield(self.end(worker))
            raise
        return worker

    async def end(self, worker: Worker) -> None:
        """Kill a worker process, and remove it from the pool."""
        await worker.kill()
        self._busy.discard(worker)

    def _take(self, capability: Capability) -> Worker | None:
        idle = self._idle.get(capability.name, [])
        while idle:
            worker = idle.pop()
            if worker.alive:
                return worker
        return None

    async def _next(self, capability: Capability) -> Worker:
        """Return an idle worker process, else the one that is being started to replace another, else a new one."""
        while (worker := self._take(capability)) is None:
            successors = self._successors.get(capability.name)
            if not successors:
                return await self.start(capability)
            await asyncio.wait([successors.pop(0)])
        return worker

    def _keep(self, capability: Capability, worker: Worker) -> None:
        """Keep a worker process for the next task, or replace it when it is over its limits."""
        limits = capability.process_limits
        resident = 0 if limits is None or limits.max_bytes is None else worker.resident_bytes
        if limits is None or not limits.over(worker.tasks, resident):
            self._busy.discard(worker)
            self._idle.setdefault(capability.name, []).append(worker)
            return
        facts = {"capability": capability.name, "tasks": worker.tasks, "resident_bytes": resident}
        log.info("A handler's process is replaced", extra=facts)
        if not limits.last(worker.tasks - 1):  # else its successor was started with its last task
            self._succeed(capability)
        self._background.start(self._retired(worker), name=f"end a process of {capability.name}")

    async def _retired(self, worker: Worker) -> None:
        await worker.stop(STOP_SECONDS)
        await self.end(worker)

    def _succeed(self, capability: Capability) -> None:
        """Start a worker process that is to replace another, in the background."""
        if not self._closed:
            start = self._background.start(self._started(capability), name=f"start a process of {capability.name}")
            self._successors.setdefault(capability.name, []).append(start)

    async def _started(self, capability: Capability) -> None:
        try:
            worker = await self.start(capability)
        except (SetupError, WorkerUnavailable) as error:
            if not self._closed:  # the next task starts one by itself
                log.warning("A handler's process could not be replaced yet", extra={"reason": str(error)})
            return
        if self._closed:
            await self.end(worker)
            return
        self._busy.discard(worker)
        self._idle.setdefault(capability.name, []).append(worker)

    async def close(self) -> None:
        """End every worker process of the agent: idle ones may close a lifespan first, the rest are killed."""
        self._closed = True
        workers = [*self._busy, *(one for idle in self._idle.values() for one in idle)]
        self._idle.clear()
        if self._stop_seconds:
            await asyncio.gather(*(one.stop(self._stop_seconds) for one in workers if one not in self._busy))
        for worker in workers:
            await worker.kill()


async def _spawn(source: str, capability: Capability) -> Worker:
    """Start a worker process: a socket is its link to the agent, stdin is empty, and stdout is the agent's stderr."""
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=STREAM_BYTES)
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "coditect.agent.processes.worker",
                    source,
                    capability.name,
                    str(os.getpid()),
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=STDERR,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except BaseException:
                writer.close()
                raise
    except OSError as error:  # no memory, no process ids, no file descriptors
        raise WorkerUnavailable("The handler's process could not be started", reason=str(error)) from error
    return Worker(process, reader, writer)


def _source_file(capability: Capability) -> str:
    code = getattr(unwrap(capability.handler), "__code__", None)
    return str(Path(code.co_filename).resolve()) if code is not None else ""
