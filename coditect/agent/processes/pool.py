"""Worker processes of handlers: started when needed, reused, and killed with their process group by a timeout."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from typing import Any

from coditect.agent.declaration import Capability
from coditect.agent.handlers.context import TaskContext
from coditect.agent.processes.protocol import Frame, FrameKind, receive
from coditect.agent.processes.rpc import WorkerRpc
from coditect.errors import CoditectError, InvalidTask, Retryable, SetupError
from coditect.model.task import Task
from coditect.wire import routing
from coditect.wire.tasks import task_message

log = logging.getLogger(__name__)

STREAM_BYTES = 4 * 1024 * 1024
PROCESS_DIED = "process_died"
"""The failure reason of an attempt whose process died before the result."""
START_SECONDS = 60.0
"""How long a worker process may take to load the agent's file."""


STOP_SECONDS = 5.0
"""How long the worker processes may take to close their lifespan when the agent ends."""


class ProcessDied(CoditectError):
    """The error of a handler's process that ended before its result: killed, out of memory, or by its own exit."""

    retryable = True


class WorkerUnavailable(Retryable):
    """The error of a handler's process that could not be started; the handler did not run."""


class RemoteError(Exception):
    """An exception that a handler raised in its worker process, with its type name and traceback as text."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts.get("message", ""))
        self.remote_type = str(facts.get("type", ""))
        self.remote_traceback = str(facts.get("traceback", ""))
        self.retryable = facts.get("retryable") is not False
        """Whether the capability's retry policy tries the failure again."""
        asked = facts.get("retry_after")
        self.delay_seconds = float(asked) if isinstance(asked, int | float) else None
        """The delay that a `RetryAfter` of the handler asked for; None for any other exception."""


class Worker:
    """A worker process for one handler, which runs one task at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout

    @property
    def alive(self) -> bool:
        """True when the worker process has not ended."""
        return self._process.returncode is None

    async def loaded(self) -> None:
        """Wait until the worker process has loaded the handler.

        Raises:
            SetupError: when the process cannot load the handler.
            WorkerUnavailable: when the process ended, or was not ready within `START_SECONDS`; retryable.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                frame = await receive(self._stdout)
        except (TimeoutError, asyncio.IncompleteReadError) as error:
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
        async with asyncio.TaskGroup() as group:
            worker_rpc = WorkerRpc(context.services, group, self._send)
            ended = await self._converse(task, context, worker_rpc)
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
            await self._stdin.drain()
            while (frame := await receive(self._stdout)).kind not in (FrameKind.VALUE, FrameKind.FAILURE):
                worker_rpc.run(frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            return _died(await self._process.wait())
        return frame.body if frame.kind is FrameKind.VALUE else _remote(frame.head)

    def _send(self, frame: Frame) -> None:
        self._stdin.write(frame.packed())

    async def stop(self, seconds: float) -> None:
        """Let the idle worker process close its lifespan and end, within the given number of seconds."""
        self._stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()

    async def kill(self) -> None:
        """Kill the worker process and its whole process group."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("The handler's process was gone already", extra={"pid": self._process.pid})
        await self._process.wait()


def _died(code: int) -> ProcessDied:
    sentence = "The handler's process ended before its result"
    if code < 0:
        return ProcessDied(sentence, signal=signal.Signals(-code).name)
    return ProcessDied(sentence, exit_code=code)


def _remote(facts: dict[str, Any]) -> Exception:
    if facts.get("invalid_input"):
        return InvalidTask(str(facts.get("message", "")))
    return RemoteError(facts)


class Workers:
    """The worker processes of one agent, each of which runs one task after another of a single capability.

    `source` is the file or module that declares the agent; without a source each handler's own file is loaded.
    """

    def __init__(self, source: str | None = None, lifespan: object = None) -> None:
        self._source = source
        self._stop_seconds = 0.0 if lifespan is None else STOP_SECONDS
        self._idle: dict[str, list[Worker]] = {}
        self._busy: set[Worker] = set()

    async def run(self, capability: Capability, task: Task, context: TaskContext) -> bytes:
        """Run one task in an idle or a new worker process of its capability, and return the body of the result.

        A cancellation, as by a timeout, kills the process.

        Raises:
            CoditectError: the errors of `start` and `Worker.call`.
            RemoteError: when the handler raised an exception.
        """
        worker = self._take(capability) or await self.start(capability)
        self._busy.add(worker)
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
        finally:
            self._busy.discard(worker)

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

    def _keep(self, capability: Capability, worker: Worker) -> None:
        self._idle.setdefault(capability.name, []).append(worker)

    async def close(self) -> None:
        """Kill every worker process of the agent."""
        workers = [*self._busy, *(one for idle in self._idle.values() for one in idle)]
        self._idle.clear()
        if self._stop_seconds:
            await asyncio.gather(*(one.stop(self._stop_seconds) for one in workers if one not in self._busy))
        for worker in workers:
            if worker.alive:
                await worker.kill()


async def _spawn(source: str, capability: Capability) -> Worker:
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coditect.agent.processes.worker",
            source,
            capability.name,
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=STREAM_BYTES,
            start_new_session=True,
        )
    except OSError as error:  # no memory, no process ids, no file descriptors
        raise WorkerUnavailable("The handler's process could not be started", reason=str(error)) from error
    return Worker(process)


def _source_file(capability: Capability) -> str:
    code = getattr(unwrap(capability.handler), "__code__", None)
    return str(Path(code.co_filename).resolve()) if code is not None else ""
