"""The worker process of a handler, the other end of `pool`: loads the agent's file and runs tasks until its link ends.

The link to the agent is a socket that the handler does not meet: programs that the handler runs do not inherit it, and
children that the handler forks lose it. Standard input is empty; standard output and error are the agent's stderr.
"""

from __future__ import annotations

import asyncio
import io
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from coditect.agent.context import Context, PlainContext, Services, TaskContext
from coditect.agent.declaration import Agent, Capability, load_agents
from coditect.agent.pool import BREAKER_SERVICE, Frame, FrameKind, call_frame, described, is_awaited, read, result_in
from coditect.agent.signature import lived
from coditect.aio.clock import SystemClock
from coditect.aio.launch import begin_program, die_with
from coditect.aio.loop import Runner, new_runner, run_loop
from coditect.aio.threads import LoopThread
from coditect.collaboration.locks import BlockingLock, Lock
from coditect.errors import BreakerOpen, InvalidTask, SetupError
from coditect.model.ids import AgentId, TaskId
from coditect.model.limits import Breaker, breaker_of
from coditect.model.message import Message
from coditect.model.result import Failure, ask_error, first_in, original_error
from coditect.model.retry import RetryAfter
from coditect.model.task import Task
from coditect.resilience.retries import RetryBudgets
from coditect.settings.settings import read_settings
from coditect.telemetry.logs import CURRENT_AGENT, CURRENT_TASK, configure_logs
from coditect.wire.tasks import read_task

T = TypeVar("T")

LINK_CHECK_SECONDS = 1.0
"""The pause between two looks at the link's descriptor."""
HANDLER_CANCEL_SECONDS = 1.0
"""How long a handler that ended its event loop may take to end itself."""


class _Receiver(io.RawIOBase):
    """The reading end of the link, which looks once a second whether its descriptor is still open.

    A read that waits would keep the socket open for the agent after a handler has closed the descriptor.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._arrivals = select.poll()
        self._arrivals.register(connection, select.POLLIN)

    def readable(self) -> bool:
        """Return True: this stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for bytes, and read them; return 0 at the end of the link, and if its descriptor was closed."""
        while not self._arrivals.poll(LINK_CHECK_SECONDS * 1000):
            pass
        try:
            return self._connection.recv_into(buffer)
        except OSError:
            return 0


class _Link:
    """The worker process's connection to its agent: sends frames, and reads tasks and answers in a thread."""

    def __init__(self, connection: socket.socket) -> None:
        connection.set_inheritable(False)
        self._connection = connection
        self._source = io.BufferedReader(_Receiver(connection))
        self._writing = threading.Lock()
        self.numbers = count(1)
        """The numbers of calls, each of which one call of this process has."""
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self.tasks: SimpleQueue[Frame | None] = SimpleQueue()
        self.retry_budgets = RetryBudgets()

    def send(self, frame: Frame) -> None:
        packed = frame.packed()
        with self._writing:
            self._connection.sendall(packed)

    def cut(self) -> None:
        """Cut the link in a forked child, whose reads and writes would mix with those of this process."""
        nothing = os.open(os.devnull, os.O_RDONLY)  # what is written to it is an error
        os.dup2(nothing, self._connection.fileno(), inheritable=False)
        os.close(nothing)

    def read_all(self) -> None:
        while (frame := read(self._source)) is not None:
            waiting = self._waiting.get(frame.head.get("number")) if frame.kind is FrameKind.ANSWER else None
            if frame.kind is FrameKind.TASK:
                self.tasks.put(frame)
            elif waiting is not None:
                waiting.get_loop().call_soon_threadsafe(_bring, waiting, frame)
        self.tasks.put(None)

    async def ask(self, service: str, /, *arguments: Any, **options: Any) -> Any:
        """Call a service of the agent and return its result, or raise its error.

        A cancellation sends the agent an ABANDON frame: the answer is not awaited any more.
        """
        return await self.ask_as(next(self.numbers), service, *arguments, **options)

    async def ask_as(self, number: int, service: str, /, *arguments: Any, **options: Any) -> Any:
        """Call a service as `ask` does, under a number from `numbers`."""
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self.send(call_frame(number, service, arguments, options))
            return result_in(await answer)
        except asyncio.CancelledError:
            self.send(Frame(FrameKind.ABANDON, number))
            raise
        finally:
            del self._waiting[number]

    def tell(self, service: str, /, *arguments: Any, **options: Any) -> None:
        """Call a service of the agent that returns nothing, without waiting for it."""
        self.send(call_frame(0, service, arguments, options))


def _bring(waiting: asyncio.Future[Frame], frame: Frame) -> None:
    if not waiting.done():
        waiting.set_result(frame)


class _Home:
    """The state that all tasks of a worker process share: the lifespan's value, and the loop on which it was opened."""

    def __init__(self, agent: Agent, runner: Runner | None = None, lifespan: Any = None) -> None:
        self.agent = agent
        self._runner = runner
        self.lifespan = lifespan

    @cached_property
    def lock_thread(self) -> LoopThread:
        """The thread, open until the process ends, on whose event loop the locks of plain handlers are renewed."""
        thread = LoopThread(nullcontext(), name="locks")
        thread.open()
        return thread

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end: on the lifespan's loop, if any, in the main thread, else on a new loop.

        Its end is taken out here, behind the loop: Python's runner calls the `repr` of its task, which calls those of
        the task's value and error, which are the user's and may raise anything.
        """
        end = self._run(_end_of(work))
        if end.error is not None:
            raise end.error
        return cast("T", end.value)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._runner is None or threading.current_thread() is not threading.main_thread():
            return run_loop(work)
        begun: list[asyncio.Task[Any]] = []
        try:
            return self._runner.run(_noted(work, begun), context=copy_context())
        finally:
            if begun and not begun[0].done():  # a SystemExit, or `loop.stop()`, left the loop in the middle of it
                self._runner.run(_canceled(begun[0]))


@dataclass(frozen=True, slots=True, repr=False)
class _End:
    """The value or the error of a coroutine, behind a `repr` that shows neither."""

    value: Any = None
    error: BaseException | None = None


async def _end_of(work: Coroutine[Any, Any, Any]) -> _End:
    try:
        return _End(await work)
    except BaseException as error:  # noqa: BLE001 - it is raised again behind the loop
        return _End(error=error)


async def _noted(work: Coroutine[Any, Any, T], begun: list[asyncio.Task[Any]]) -> T:
    task = asyncio.current_task()
    assert task is not None
    begun.append(task)
    return await work


async def _canceled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=HANDLER_CANCEL_SECONDS)


class _RemoteCall:
    """A call of a dependency by a worker process, which tells the agent's breaker how the call ended."""

    def __init__(self, link: _Link, breaker: Breaker) -> None:
        self._link, self._breaker, self._number = link, breaker, next(link.numbers)
        self.permit: int | None = None
        """The permit's number if the call is a probe, as that of `GuardedCall`."""

    async def __aenter__(self) -> Self:
        self.permit = await self._link.ask_as(self._number, BREAKER_SERVICE, self._breaker.name)
        self._since = monotonic()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        verdict = self._breaker.judge(error, monotonic() - self._since)
        self._link.send(Frame(FrameKind.LEAVE, {"number": self._number, "verdict": verdict.value}))


class _RemoteServices:
    """The `Services` of a worker process: it has the agent carry out most calls, and does some by itself."""

    asked_to_end = False
    """Always False: the agent kills a worker process whose task is to end."""

    def __init__(self, link: _Link, home: _Home, *, ahead_ms: int) -> None:
        """Keep the link to the agent, and how far the agent's clock is ahead of this machine's (`ahead_ms`)."""
        self._link, self._home, self._ahead_ms = link, home, ahead_ms
        self.retry_budgets, self.lifespan = link.retry_budgets, home.lifespan

    def now_ms(self) -> int:
        """Return the time of the agent's clock, in Unix milliseconds."""
        return SystemClock().now_ms() + self._ahead_ms

    def __getattr__(self, service: str) -> Callable[..., Any]:
        return partial(self._link.ask if is_awaited(service) else self._link.tell, service)

    async def without_slot(self, wait: Coroutine[Any, Any, T]) -> T:
        """Await something in this process, which serves one task at a time: the task keeps its slot."""
        return await wait

    def breaker(self, name: str) -> _RemoteCall:
        """Return a context manager around one call of a dependency, which the agent's breaker guards."""
        return _RemoteCall(self._link, self._home.agent.breakers.get(name) or breaker_of(name))

    def hold(self, lock: Lock) -> BlockingLock:
        """Return a blocking form of a lock for a plain handler; a thread of this process renews the lock."""
        run = self._home.lock_thread.run
        return BlockingLock(lock, run, closing=run)

    def report(self, share: float, note: str) -> None:
        """Send progress for a plain handler; the agent publishes it on its loop, before the handler's result."""
        self._link.tell("progress", share, note)

    def run(self, work: Coroutine[Any, Any, T], *, closing: bool = False) -> T:
        """Run a coroutine, such as a call of the agent, to its end for a plain handler; only a kill stops it."""
        return self._home.run(work)


def _context(kind: type[TaskContext], task: Task, head: dict[str, Any], link: _Link, home: _Home) -> TaskContext:
    """Return the context of an execution in this process; the agent deletes its workspace folder."""
    ahead_ms = head["now_ms"] - SystemClock().now_ms()
    services = cast("Services", _RemoteServices(link, home, ahead_ms=ahead_ms))
    ids, workspace = (TaskId(head["task_id"]), AgentId(head["agent_id"])), Path(head["workspace"])
    return kind(task, *ids, services, headers=head["own"], workspace=workspace)


def _run(capability: Capability, frame: Frame, value: Any, link: _Link, home: _Home) -> bytes:
    shape, head = capability.signature, frame.head
    kind = PlainContext if shape.blocking else Context
    known = Message(b"", headers=head["headers"], message_id=head["task_id"])  # its input may be over the limit
    task = read_task(known, head["key"])
    CURRENT_AGENT.set(AgentId(head["agent_id"]))
    CURRENT_TASK.set(task)
    arguments = (value, _context(kind, task, head, link, home)) if shape.wants_context else (value,)
    result = capability.handler(*arguments)
    if asyncio.iscoroutine(result):
        result = home.run(result)
    return shape.output.encode(result)


def _answer(capability: Capability, frame: Frame, link: _Link, home: _Home) -> Frame:
    """Run the task that a message of the agent brings, and return the message with its value or failure."""
    decoded = False
    try:
        value = capability.signature.input.decode(frame.body)
        decoded = True
        return Frame(FrameKind.VALUE, body=_run(capability, frame, value, link, home))
    except BaseException as error:  # noqa: BLE001 - the boundary: even sys.exit() is only a failure of the attempt
        invalid = not decoded and issubclass(type(error), InvalidTask)
        return _failure(capability, original_error(error), invalid_input=invalid)


def _failure(capability: Capability, error: BaseException, *, invalid_input: bool) -> Frame:
    refusal, failure = first_in(error, BreakerOpen), Failure.from_error(error, "", caller=__file__)
    facts = {
        "type": failure.type,
        "message": failure.message,
        "traceback": failure.traceback,
        "fix": failure.fix,
        "retryable": capability.retry.allows(error),
        "invalid_input": invalid_input,
        "retry_after": ask_error(lambda: cast("RetryAfter", error).delay_seconds, otherwise=None)
        if issubclass(type(error), RetryAfter)
        else None,
        "refusal": described(refusal) if refusal is not None else None,
    }
    return Frame(FrameKind.FAILURE, facts)


def _load(target: str, capability_name: str) -> tuple[Agent, Capability]:
    for agent in load_agents(target):
        for capability in agent.capabilities:
            if capability.name == capability_name:
                return agent, capability
    raise SetupError("No agent there declares this capability", target=target, capability=capability_name)


def _die_first() -> None:
    """Ask the kernel to kill this process rather than others when memory runs out; Linux only."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main(target: str, capability_name: str, agent_pid: int, link_fd: int) -> None:
    """Run tasks of one capability until the link or the agent's process ends; `target` declares the agent."""
    die_with(agent_pid)
    _die_first()
    begin_program()
    link = _Link(socket.socket(fileno=link_fd))
    os.register_at_fork(after_in_child=link.cut)
    ready = False
    try:
        agent, capability = _load(target, capability_name)
        configure_logs(read_settings())  # in place of what the agent's file may have configured
        with _lifespan(agent, shared_loop=bool(capability.signature.dependencies)) as home:
            threading.Thread(target=link.read_all, name="link", daemon=True).start()
            link.send(Frame(FrameKind.READY))
            ready = True
            while (frame := link.tasks.get()) is not None:
                link.send(copy_context().run(_answer, capability, frame, link, home))  # what a task sets ends with it
    except BaseException as error:
        if ready:
            raise
        failure = Failure.from_error(error, "")  # the boundary: the agent's file may do anything
        link.send(Frame(FrameKind.UNUSABLE, f"{failure.type}: {failure.message}"))


@contextmanager
def _lifespan(agent: Agent, *, shared_loop: bool) -> Iterator[_Home]:
    """Open the agent's lifespan, if any, on a loop on which tasks run as well; yield what tasks share, and close it."""
    if agent.lifespan is None and not shared_loop:
        yield _Home(agent)
        return
    with new_runner() as runner:
        opened = lived(agent.lifespan, agent)
        home = _Home(agent, runner, runner.run(opened.__aenter__()))
        try:
            yield home
        finally:
            runner.run(opened.__aexit__(None, None, None))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
