"""The blocking counterparts of client, handle, workflow run and event stream, for scripts, notebooks and threads.

The module repeats no logic: each method runs the asynchronous method of the same name in the event loop's thread,
waits for its result, and takes over its signature and documentation.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import wraps
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from coditect.aio.loop_thread import LoopThread
from coditect.client.handle import DEFAULT_TIMEOUT, Handle
from coditect.client.workflow_run import DEFAULT_TIMEOUT as RUN_TIMEOUT
from coditect.client.workflow_run import Run
from coditect.collaboration.blocking_locks import BlockingLock
from coditect.collaboration.locks import Lock
from coditect.collaboration.state import SharedState
from coditect.errors import CoditectError
from coditect.messaging.event_stream import EventStream
from coditect.model.duration import Duration, seconds
from coditect.model.event import Event
from coditect.model.ids import TaskId

T = TypeVar("T")
P = ParamSpec("P")
A_co = TypeVar("A_co", covariant=True)
B = TypeVar("B")
K = TypeVar("K")
C = TypeVar("C", bound=AbstractAsyncContextManager[Any])

_END: Any = object()
"""What stands for the end of an iteration, since an item may be None."""
CHUNK = 500
"""The number of values that `submit_many` submits together: a thread switch for each value would cost more."""


class Blocking(Generic[A_co]):
    """The base class of blocking objects: an asynchronous object, and the thread of its event loop."""

    def __init__(self, inner: A_co, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread


def _giving(method: T, kind: str) -> T:
    """Set a blocking method's return type, and drop the word `async` from its docstring; return the method."""
    shown: Any = method
    shown.__signature__ = inspect.signature(shown).replace(return_annotation=kind)
    shown.__doc__ = (shown.__doc__ or "").replace("async ", "")
    return method


def waiting(
    method: Callable[Concatenate[A_co, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Blocking[A_co], P], T]:
    """Return the blocking counterpart of a coroutine method: it runs the method (or its override) and waits."""

    @wraps(method)
    def wait(self: Blocking[A_co], /, *args: P.args, **kwargs: P.kwargs) -> T:
        own: Callable[P, Coroutine[Any, Any, T]] = getattr(self._inner, method.__name__)
        return self._thread.run(own(*args, **kwargs))

    return wait


class SyncEvents(Blocking[EventStream]):
    """A blocking stream of the events since the start of its `with` block: `with client.events() as events`."""

    def __enter__(self) -> Self:
        self._thread.run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.run(self._inner.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return self._thread.run(self._inner.__anext__())

    def next(self, *, timeout: Duration) -> Event | None:
        """Wait for the next event and return it; None when no event comes within `timeout`."""
        return self._thread.run(_in_time(self._inner, seconds(timeout)))


class SyncContext(Blocking[C]):
    """A blocking object that starts and ends its thread: by `with` or, in a notebook, by `open` and `close`."""

    def __init__(self, inner: C) -> None:
        super().__init__(inner, LoopThread(inner, name="coditect client"))

    def open(self) -> Self:
        """Start the thread and connect; the end of the interpreter closes an open object.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
            TopologyMismatch: when an exchange or queue exists with other arguments.
            SetupError: when the object was opened before.
        """
        self._thread.open()
        return self

    def close(self) -> None:
        """Disconnect and end the thread; idempotent. Calls that wait in other threads raise SetupError."""
        self._thread.close()

    def inside(self) -> tuple[C, LoopThread]:
        """Return the asynchronous object and its thread, for a library that makes blocking and asynchronous calls."""
        return self._inner, self._thread

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def making(
    method: Callable[Concatenate[A_co, P], Coroutine[Any, Any, B]], kind: Callable[[B, LoopThread], K]
) -> Callable[Concatenate[Blocking[A_co], P], K]:
    """Return the blocking counterpart of a coroutine method, which wraps the method's result in the class `kind`.

    The class `kind` is the blocking counterpart of the class of that result.
    """

    @wraps(method)
    def make(self: Blocking[A_co], /, *args: P.args, **kwargs: P.kwargs) -> K:
        return kind(self._thread.run(method(self._inner, *args, **kwargs)), self._thread)

    return _giving(make, getattr(kind, "__name__", ""))


def naming(
    method: Callable[Concatenate[A_co, P], B], kind: Callable[[B, LoopThread], K]
) -> Callable[Concatenate[Blocking[A_co], P], K]:
    """Return the blocking counterpart of a plain method, which wraps the method's result in the class `kind`.

    The class `kind` is the blocking counterpart of the class of that result.
    """

    @wraps(method)
    def name(self: Blocking[A_co], /, *args: P.args, **kwargs: P.kwargs) -> K:
        return kind(method(self._inner, *args, **kwargs), self._thread)

    return _giving(name, getattr(kind, "__name__", ""))


def iterating(
    method: Callable[Concatenate[A_co, P], AsyncIterator[T]],
) -> Callable[Concatenate[Blocking[A_co], P], Iterator[T]]:
    """Return a blocking method that gives a plain iterator over the items of the given method's async iterator."""

    @wraps(method)
    def iterate(self: Blocking[A_co], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        own: Callable[P, AsyncIterator[T]] = getattr(self._inner, method.__name__)
        return _each(own(*args, **kwargs), self._thread)

    given = str(inspect.signature(method).return_annotation)
    return _giving(iterate, given.replace("AsyncIterator", "Iterator"))


class SyncSharedState(Blocking[SharedState]):
    """The shared state of a workflow or of a named space, for code without an event loop; see `SyncClient.space`."""

    @property
    def name(self) -> str:
        """The name by which requests call the shared state: `workflow:` and an id, or `space:` and a name."""
        return self._inner.name

    get = waiting(SharedState.get)
    entry = waiting(SharedState.entry)
    put = waiting(SharedState.put)
    merge = waiting(SharedState.merge)
    update = waiting(SharedState.update)
    delete = waiting(SharedState.delete)
    entries = iterating(SharedState.entries)
    history = waiting(SharedState.history)
    watch = iterating(SharedState.watch)


class SyncLock(BlockingLock):
    """The lock of a blocking client, held inside of `with client.lock("repo:x") as lock`; see `SyncClient.lock`."""

    def __init__(self, lock: Lock, thread: LoopThread) -> None:
        super().__init__(lock, thread.run, closing=thread.run)


class SyncRun(Blocking[Run]):
    """The blocking handle of a workflow: reads its state and results, and controls it; see `SyncClient.start`."""

    @property
    def id(self) -> str:
        """The workflow's id, by which any process can make a handle (`SyncClient.run`)."""
        return self._inner.id

    @property
    def new(self) -> bool:
        """True when the call that made this handle started the workflow; False for a known `key`, or a handle by id."""
        return self._inner.new

    @property
    def shared(self) -> SyncSharedState:
        """The shared state of the workflow, which its nodes read and write by `ctx.shared`."""
        return SyncSharedState(self._inner.shared, self._thread)

    state = waiting(Run.state)
    overview = waiting(Run.overview)
    nodes = iterating(Run.nodes)
    attempts = iterating(Run.attempts)
    wait = waiting(Run.wait)
    look = waiting(Run.look)
    input = waiting(Run.input)
    ending = waiting(Run.ending)
    events = iterating(Run.events)
    told = iterating(Run.told)
    cancel = waiting(Run.cancel)
    pause = waiting(Run.pause)
    resume = waiting(Run.resume)
    redrive = waiting(Run.redrive)
    answer = waiting(Run.answer)
    signal = waiting(Run.signal)
    checkpoint = waiting(Run.checkpoint)
    checkpoints = waiting(Run.checkpoints)
    restores = waiting(Run.restores)
    plan_restore = waiting(Run.plan_restore)
    restore = waiting(Run.restore)

    @overload
    def result(self, *, node: str | None = ..., timeout: Duration = ...) -> Any: ...
    @overload
    def result(self, model: type[T], *, node: str | None = ..., timeout: Duration = ...) -> T: ...
    def result(self, model: Any = Any, *, node: str | None = None, timeout: Duration = RUN_TIMEOUT) -> Any:
        """Wait for the workflow's end and return its value: that of the last node, or of several as an object by name.

        With `node` the call waits for that node alone, and returns its value. A skipped node gives None. The value is
        validated as `model`. Ctrl-C ends only the wait.

        Raises:
            TaskError: when the workflow or node ended without a value: TaskFailed, TaskRejected, TaskCanceled or
                TaskExpired, with the failure's facts.
            ResultTimeout: when the result is not there in time.
        """
        return self._thread.run(self._inner.result(model, node=node, timeout=timeout))


class SyncHandle(Blocking[Handle]):
    """The blocking handle of one task: gives its result and events, and cancels it; see `SyncClient.submit`."""

    @property
    def task_id(self) -> TaskId:
        """The id of the task, which is AMQP's `message_id`."""
        return self._inner.task_id

    @property
    def capability(self) -> str:
        """The capability that the task asks for; empty for a handle that `SyncClient.task` made."""
        return self._inner.capability

    @property
    def done(self) -> bool:
        """True when the outcome has arrived; for a durable task, when `outcome` or `result` has fetched it."""
        return self._inner.done

    @property
    def run(self) -> SyncRun:
        """The handle of a durable task's workflow, which lists every attempt and can redrive the task.

        Raises:
            InputError: when the task is a direct one.
        """
        return SyncRun(self._inner.run, self._thread)

    row = waiting(Handle.row)
    outcome = waiting(Handle.outcome)
    stream = iterating(Handle.stream)
    events = iterating(Handle.events)
    cancel = waiting(Handle.cancel)

    @overload
    def result(self, *, timeout: Duration = ...) -> Any: ...
    @overload
    def result(self, model: type[T], *, timeout: Duration = ...) -> T: ...
    def result(self, model: Any = Any, *, timeout: Duration = DEFAULT_TIMEOUT) -> Any:
        """Wait for the task's result and return its value, validated as the type `model`; may be called again.

        Ctrl-C ends the wait, and the task goes on.

        Raises:
            TaskError: when the task ended without a value: TaskFailed, TaskRejected, TaskCanceled or TaskExpired, with
                the failure's facts.
            ResultTimeout: when the result is not there in time.
        """
        return self._thread.run(self._inner.result(model, timeout=timeout))

    def forget(self) -> None:
        """Stop waiting for a direct task's result, and free its memory; the task goes on; does nothing if durable."""
        self._thread.run(_called(self._inner.forget))


def handing_many(
    method: Callable[Concatenate[A_co, str, Iterable[Any], P], AsyncIterator[Handle]],
) -> Callable[Concatenate[Blocking[A_co], str, Iterable[Any], P], Iterator[SyncHandle]]:
    """Return the blocking counterpart of `submit_many`, which submits many tasks and gives an iterator of handles.

    The method takes the values in the caller's thread, `CHUNK` at a time.
    """

    @wraps(method)
    def submit_many(
        self: Blocking[A_co], capability: str, values: Iterable[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Iterator[SyncHandle]:
        source = iter(values)
        while chunk := list(islice(source, CHUNK)):
            handles, error = self._thread.run(_taken(method(self._inner, capability, chunk, *args, **kwargs)))
            yield from (SyncHandle(handle, self._thread) for handle in handles)
            if error is not None:
                raise error

    return _giving(submit_many, f"Iterator[{SyncHandle.__name__}]")


async def _taken(handles: AsyncIterator[Handle]) -> tuple[list[Handle], CoditectError | None]:
    """Collect the handles of an iterator to its end; return them, and the CoditectError that ended it early, if any."""
    taken: list[Handle] = []
    try:
        async for handle in handles:
            taken.append(handle)
    except CoditectError as error:
        return taken, error
    return taken, None


async def _called(function: Callable[[], object]) -> None:
    function()


async def _in_time(events: EventStream, longest_seconds: float) -> Event | None:
    try:
        async with asyncio.timeout(longest_seconds):
            return await anext(events)
    except TimeoutError:
        return None


def _each(stream: AsyncIterator[T], thread: LoopThread) -> Iterator[T]:
    try:
        while (one := thread.run(_next(stream))) is not _END:
            yield one
    except GeneratorExit:
        thread.start(_ended(stream))
        raise


async def _next(stream: AsyncIterator[T]) -> Any:
    return await anext(stream, _END)


async def _ended(stream: AsyncIterator[Any]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
