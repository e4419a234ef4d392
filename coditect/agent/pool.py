"""Worker processes of handlers: started when needed, reused, and killed with their process group by a timeout."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from coditect import errors
from coditect.agent.context import Services, TaskContext
from coditect.agent.declaration import Capability
from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError, InvalidTask, Retryable, SetupError
from coditect.model.limits import CallVerdict
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome
from coditect.model.task import Task
from coditect.wire import routing
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import read_result, result_message, task_message

if TYPE_CHECKING:
    from coditect.resilience.breakers import GuardedCall

log = logging.getLogger(__name__)

STREAM_BYTES = 4 * 1024 * 1024
STDERR = 2
PROCESS_DIED = "process_died"
"""The failure reason of an attempt whose process died before the result."""
START_SECONDS = 60.0
"""How long a worker process may take to load the agent's file."""
WORKER_EXIT_SECONDS = 2.0
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
        import psutil  # noqa: PLC0415 - a worker imports this module, too, and starts without it

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
            async with asyncio.timeout(WORKER_EXIT_SECONDS):
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

    async def _next(self, capability: Capability) -> Worker:
        """Return an idle worker process, else the one that is being started to replace another, else a new one."""
        while True:
            idle, successors = self._idle.get(capability.name, []), self._successors.get(capability.name)
            while idle:
                if (worker := idle.pop()).alive:
                    return worker
            if not successors:
                return await self.start(capability)
            await asyncio.wait([successors.pop(0)])

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
        workers = [*self._busy, *(worker for idle in self._idle.values() for worker in idle)]
        self._idle.clear()
        if self._stop_seconds:
            await asyncio.gather(*(worker.stop(self._stop_seconds) for worker in workers if worker not in self._busy))
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
                    "coditect.agent.worker",
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


# The protocol between an agent and its worker processes: frames of a kind, a JSON head and a body.
#
# ::
#
#     agent  → worker   TASK      head: the task's key, headers and ids     body: its input
#                       ANSWER    head: number, and result or error         body: the result's value
#     worker → agent    READY     the handler is loaded
#                       UNUSABLE  head: why it cannot be loaded             (the worker ends)
#                       VALUE                                               body: the handler's value
#                       FAILURE   head: the exception's facts
#                       CALL      head: number, service and arguments       body: the argument that is bytes
#                       ABANDON   head: number of a call whose answer is not awaited any more
#                       LEAVE     head: number of a call of `breaker`, and the verdict of its end

_SIZES = struct.Struct(">BII")


class FrameKind(IntEnum):
    """The kind of a message between agent and worker process, such as a task, its value, or a call of a service.

    The module's table shows direction, head and body of each kind.
    """

    TASK = auto()
    ANSWER = auto()
    READY = auto()
    UNUSABLE = auto()
    VALUE = auto()
    FAILURE = auto()
    CALL = auto()
    ABANDON = auto()
    LEAVE = auto()


@dataclass(frozen=True, slots=True)
class Frame:
    """A message between agent and worker process: a kind, a head of JSON values, and a body of bytes."""

    kind: FrameKind
    head: Any = None
    body: bytes = b""

    def packed(self) -> bytes:
        """Return the frame's bytes: the kind and the sizes of head and body, then head and body."""
        head = dumps(self.head)
        return _SIZES.pack(self.kind, len(head), len(self.body)) + head + self.body


async def receive(stream: asyncio.StreamReader) -> Frame:
    """Read the next frame from an asyncio stream, and return it.

    Raises:
        IncompleteReadError: when the stream ends.
    """
    kind, head, body = _SIZES.unpack(await stream.readexactly(_SIZES.size))
    return Frame(FrameKind(kind), loads(await stream.readexactly(head)), await stream.readexactly(body))


def read(stream: BinaryIO) -> Frame | None:
    """Read the next frame with blocking calls, and return it; None when the stream ends."""
    start = stream.read(_SIZES.size)
    if len(start) < _SIZES.size:
        return None
    kind, head, body = _SIZES.unpack(start)
    content = stream.read(head + body)
    return Frame(FrameKind(kind), loads(content[:head]), content[head:]) if len(content) == head + body else None


BREAKER_SERVICE = "breaker"


def is_awaited(service: str) -> bool:
    """Tell whether a worker process waits for an answer when it calls the named method of `Services`.

    It does for the coroutine functions and for `breaker`.

    Raises:
        AttributeError: when `Services` has no such service.
    """
    if service.startswith("_"):
        raise AttributeError(service)
    return service == BREAKER_SERVICE or inspect.iscoroutinefunction(getattr(Services, service))


def call_frame(number: int, service: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Frame:
    """Return the message that calls a service of the agent; one argument may be bytes, the others are JSON."""
    place = next((place for place, argument in enumerate(arguments) if isinstance(argument, bytes)), None)
    values = [None if at == place else argument for at, argument in enumerate(arguments)]
    head = {"number": number, "service": service, "arguments": values, "options": options, "bytes": place}
    return Frame(FrameKind.CALL, head, b"" if place is None else arguments[place])


class WorkerRpc:
    """The agent's side of a worker's service calls: runs each call, and sends the answers of awaited calls."""

    def __init__(self, services: Services, group: asyncio.TaskGroup, send: Callable[[Frame], None]) -> None:
        self._services = services
        self._group = group
        self._send = send
        self._awaited: dict[int, asyncio.Task[None]] = {}
        self._guarded: dict[int, GuardedCall] = {}
        """The running calls of dependencies that breakers guard."""

    def run(self, frame: Frame) -> None:
        """Carry out a worker's message: begin a call of a service, cancel a call, or end a call that a breaker guards.

        An awaited call runs in the background.

        Raises:
            ValueError: when the frame is of a kind that a worker does not send.
            AttributeError: when there is no such service.
        """
        match frame.kind:
            case FrameKind.CALL:
                self._call(frame)
            case FrameKind.ABANDON:
                if frame.head in self._awaited:
                    self._awaited[frame.head].cancel()
                self._leave(frame.head, CallVerdict.NEUTRAL)
            case FrameKind.LEAVE:
                self._leave(frame.head["number"], CallVerdict(frame.head["verdict"]))
            case _:
                raise ValueError(f"a worker does not say {frame.kind.name}")

    def cancel(self) -> None:
        """Cancel the calls that still run, because the worker does not await their answers any more."""
        for call in self._awaited.values():
            call.cancel()
        for number in tuple(self._guarded):
            self._leave(number, CallVerdict.NEUTRAL)

    def _leave(self, number: int, verdict: CallVerdict) -> None:
        if (call := self._guarded.pop(number, None)) is not None:
            call.record(verdict)

    async def _enter(self, number: int, breaker: str) -> int | None:
        call = cast("GuardedCall", self._services.breaker(breaker))
        await call.__aenter__()
        self._guarded[number] = call
        return call.permit

    def _call(self, frame: Frame) -> None:
        number, service, arguments = frame.head["number"], frame.head["service"], frame.head["arguments"]
        awaited = is_awaited(service)
        if frame.head["bytes"] is not None:
            arguments[frame.head["bytes"]] = frame.body
        called = partial(self._enter, number) if service == BREAKER_SERVICE else getattr(self._services, service)
        call = partial(called, *arguments, **frame.head["options"])
        if not awaited:
            call()
            return
        self._awaited[number] = self._group.create_task(self._answer(number, call), name=f"{service} of a worker")
        self._awaited[number].add_done_callback(lambda _: self._awaited.pop(number, None))

    async def _answer(self, number: int, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            frame = _answer(number, await call())
        except Exception as error:  # noqa: BLE001 - the handler that asked gets the error, and may catch it
            frame = Frame(FrameKind.ANSWER, {"number": number, "error": described(error)})
        self._send(frame)


def _answer(number: int, result: Any) -> Frame:
    """Return the message that answers a call of a service with its result: an `Outcome`, or a JSON value."""
    if not isinstance(result, Outcome):
        return Frame(FrameKind.ANSWER, {"number": number, "value": result})
    message = result_message(result, capability="")
    fields = {
        "headers": dict(message.headers),
        "correlation_id": message.correlation_id,
        "content_type": message.content_type,
    }
    head = {"number": number, "message": fields}
    return Frame(FrameKind.ANSWER, head, message.body)


def described(error: Exception) -> dict[str, Any]:
    """Return an error as JSON values, from which `error_in` rebuilds the error."""
    if not isinstance(error, CoditectError):
        return {"type": type(error).__name__, "sentence": Failure.from_error(error, "").message, "facts": {}}
    facts = {name: value if isinstance(value, int | float) else str(value) for name, value in error.facts.items()}
    return {"type": type(error).__name__, "sentence": error.sentence, "facts": facts}


def error_in(description: Mapping[str, Any]) -> Exception:
    """Rebuild an error from the JSON values that `described` made.

    The error has the same type if that is one of `coditect.errors` or of Python, else it is a CoditectError.
    """
    kind = getattr(errors, description["type"], None) or getattr(builtins, description["type"], None)
    if isinstance(kind, type) and issubclass(kind, CoditectError):
        return kind(description["sentence"], **description["facts"])
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError | ExceptionGroup):
        return kind(description["sentence"])
    return CoditectError(description["sentence"], **{"type": description["type"]} | description["facts"])


def result_in(frame: Frame) -> Any:
    """Return the result of a service call from the agent's answer, or raise the service's error.

    Raises:
        Exception: the error with which the service ended, of the same type.
    """
    head = frame.head
    if (description := head.get("error")) is not None:
        raise error_in(description)
    if "value" in head:
        return head["value"]
    return read_result(Message(frame.body, **head["message"]))
