"""Threads beside an event loop: calls in both directions, which carry any exception, and a thread with its own loop.

asyncio has no place for some of them: a future takes no StopIteration and never ends, a SystemExit or KeyboardInterrupt
of an asyncio task ends the event loop, and a CancelledError looks like a cancellation. So an exception travels as a
value, beside the result.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast
from weakref import WeakSet

from coditect.aio.loop import new_runner
from coditect.aio.supervisor import cancellations
from coditect.errors import SetupError
from coditect.model.result import trace_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Carried(Generic[T]):
    """The end of a call: its result, or the exception that it raised."""

    value: T | None = None
    error: BaseException | None = None
    trace: TracebackType | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """Return the end of a call that raised an exception, with the exception's present traceback."""
        return cls(error=error, trace=trace_of(error))

    def result(self) -> T:
        """Return the call's result, or raise its exception with the traceback that it had at the end of the call.

        A coroutine that calls this passes a StopIteration on as a RuntimeError, as Python does (PEP 479).
        """
        if self.error is None:
            return cast("T", self.value)
        try:
            raise BaseException.with_traceback(self.error, self.trace)
        finally:
            del self  # or the error would hold on to itself by its traceback


def carry(call: Callable[[], T]) -> Carried[T]:
    """Make a call, and return its end, whatever it raises."""
    try:
        return Carried(call())
    except BaseException as error:  # noqa: BLE001 - it travels as a value
        return Carried.failed(error)


async def carry_await(work: Awaitable[T]) -> Carried[T]:
    """Await work, and return its end, whatever it raises; only a cancellation of the awaiting task passes through."""
    try:
        return Carried(await work)
    except asyncio.CancelledError as error:
        if cancellations():
            raise
        return Carried.failed(error)
    except BaseException as error:  # noqa: BLE001 - it travels as a value
        return Carried.failed(error)


async def in_thread(call: Callable[[], T]) -> T:
    """Make a call in a thread of the event loop's pool, as `asyncio.to_thread` does, and return its result.

    Raises:
        BaseException: whatever the call raises; a StopIteration as the cause of a RuntimeError.
    """
    ends: list[Carried[T]] = []

    def run() -> None:
        ends.append(carry(call))

    await asyncio.get_running_loop().run_in_executor(None, copy_context().run, run)
    return ends.pop().result()  # nothing else keeps the error, whose traceback keeps this frame: no cycle is left


_WAITING: WeakSet[asyncio.Future[Any]] = WeakSet()


async def awaited_by(job: asyncio.Future[Any] | None, work: Awaitable[T]) -> T:
    """Await, on the event loop, the work that a job in a thread waits for; meanwhile `waits_for_loop(job)` is True."""
    if job is None:
        return await work
    _WAITING.add(job)
    try:
        return await work
    finally:
        _WAITING.discard(job)


def waits_for_loop(job: asyncio.Future[Any]) -> bool:
    """Tell whether a job in a thread waits for something that its event loop does."""
    return job in _WAITING


# A thread with its own event loop, for callers that have no loop or must not wait in theirs.
#
# The thread enters an asynchronous context and runs the coroutines that other threads hand over. The thread leaves the
# context when the owner closes the thread, when the owner is garbage-collected, or when the interpreter ends.


LOOP_THREAD_EXIT_SECONDS = 5.0
"""How long the end of the interpreter waits for a `LoopThread` whose context is still open."""


class LoopThread:
    """A thread that holds an asynchronous context open on its own event loop and runs other threads' coroutines there.

    Threads may share a `LoopThread`. One task of the loop enters and leaves the context, as `async with` would.
    """

    def __init__(self, context: AbstractAsyncContextManager[object], *, name: str) -> None:
        self._life = _Life()
        self._thread = threading.Thread(target=self._life.run, args=(context,), name=name, daemon=True)
        self._closed = False

    def open(self) -> None:
        """Start the thread, and return once the thread has entered the asynchronous context.

        Raises:
            SetupError: when the thread was opened before.
            Exception: any error that entering the context raises.
        """
        if self._life.process is not None or self._closed:
            raise SetupError("A client is opened once", fix="make a new one: Client.sync()")
        weakref.finalize(self, self._life.leave).atexit = False
        atexit.register(self._life.leave_at_exit)
        self._thread.start()
        self._life.process = os.getpid()
        try:
            wait((self._life.opened, self._life.ended), return_when=FIRST_COMPLETED)
            if self._life.ended.done():
                self._life.ended.result()
        except BaseException:  # it could not be opened, or somebody lost patience
            self._closed = True
            self._life.leave()
            raise

    def close(self) -> None:
        """Leave the asynchronous context, and wait for the thread's end unless called on that thread; may be repeated.

        A `run` that still waits raises SetupError.

        Raises:
            Exception: any error that leaving the context raises.
        """
        self._closed = True
        self._life.leave()
        if self._life.ours and threading.current_thread() is not self._thread:
            self._thread.join()
            if self._life.opened.done():
                self._life.ended.result()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the thread's loop, wait for the end, and return the result.

        An interrupt of the wait (Ctrl-C) cancels the coroutine.

        Raises:
            SetupError: before `open`, after `close`, after a fork, and on the loop's own thread, which would wait for
                itself.
            Exception: any error that the coroutine raises.
        """
        future = self._start(work)
        try:
            either: set[Future[Any]] = {future, self._life.ended}
            wait(either, return_when=FIRST_COMPLETED)
            if not future.done():  # the loop ended before it began
                work.close()
                raise self._refusal()
            return future.result()
        except CancelledError as error:
            if self._closed:
                raise self._refusal() from error
            raise
        finally:
            future.cancel()  # nothing happens to what has ended
            del future  # or it would hold on to itself by the traceback of its error

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the thread's loop, and await the result in the caller's own loop.

        A cancel of the caller cancels the coroutine.

        Raises:
            SetupError: as `run` does.
            Exception: any error that the coroutine raises.
        """
        future = self._start(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise self._refusal() from error
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T] | None:
        """Start a coroutine on the thread's loop without waiting; close it and return None unless the loop is open."""
        if self._life.ours and self._life.opened.done() and not self._closed:
            with suppress(RuntimeError):  # the loop has ended
                return asyncio.run_coroutine_threadsafe(work, self._life.loop)
        work.close()
        return None

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        inside = threading.current_thread() is self._thread
        future = None if inside else self.start(work)
        if future is None:
            work.close()
            raise self._refusal()
        return future

    def _refusal(self) -> SetupError:
        if self._closed:
            return SetupError("The client is closed", fix="make a new one: Client.sync()")
        if not self._life.opened.done():
            return SetupError("The client is not open", fix="use it in a `with` block, or call open() first")
        if not self._life.ours:
            return SetupError("A client does not survive a fork", fix="make one in the process that uses it")
        return SetupError("A client cannot wait on its own event loop", fix="use `async with Client...` there")


class _Life:
    """The state of a loop thread, without a reference to the thread's owner, which can thus be garbage-collected."""

    def __init__(self) -> None:
        self.process: int | None = None
        """Id of the process that started the thread; None before the start."""
        self._begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, Callable[[], object]]] = Future()
        self.opened: Future[None] = Future()
        self.ended: Future[None] = Future()

    @property
    def ours(self) -> bool:
        """Tell whether the calling process started the thread; False in a child that was forked later."""
        return self.process == os.getpid()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The thread's event loop; blocks until the loop runs."""
        return self._begun.result()[0]

    def run(self, context: AbstractAsyncContextManager[object]) -> None:
        """Run the thread's body: hold the context open on a new event loop until `leave`."""
        try:
            with new_runner() as runner:
                runner.run(self._hold(context))
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: the owner raises it
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)
        finally:
            atexit.unregister(self.leave_at_exit)

    async def _hold(self, context: AbstractAsyncContextManager[object]) -> None:
        leave = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        self._begun.set_result((asyncio.get_running_loop(), leave, task.cancel))
        async with context:
            self.opened.set_result(None)
            await leave.wait()

    def leave(self) -> None:
        """Ask the thread to leave the context, or to stop entering the context, without waiting for the end."""
        if not self.ours:
            return
        either: set[Future[Any]] = {self._begun, self.ended}
        wait(either, return_when=FIRST_COMPLETED)
        if not self._begun.done():
            return  # there was no loop to be had
        loop, leave, cancel = self._begun.result()
        with suppress(RuntimeError):  # the loop is closed: it has left
            loop.call_soon_threadsafe(leave.set if self.opened.done() else cancel)

    def leave_at_exit(self) -> None:
        """Leave the context at the end of the interpreter, and wait at most 5 s for the thread's end."""
        self.leave()
        if self.ours:
            wait((self.ended,), timeout=LOOP_THREAD_EXIT_SECONDS)
