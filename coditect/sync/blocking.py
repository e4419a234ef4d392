"""The asynchronous names for callers without an event loop: scripts, notebooks, threads.

Nothing is done here a second time. Each method hands the asynchronous one to the loop's thread and waits, and
takes signature and documentation from it.
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
from coditect.errors import CoditectError
from coditect.messaging.event_stream import EventStream
from coditect.model.duration import Duration, seconds
from coditect.model.event import Event
from coditect.model.ids import TaskId

T = TypeVar("T")
P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
K = TypeVar("K")
C = TypeVar("C", bound=AbstractAsyncContextManager[Any])

CHUNK = 500
"""So many values are taken, then submitted together: going to the loop's thread once for each costs more."""


class Blocking(Generic[A]):
    """Something asynchronous, and the thread that it lives in."""

    def __init__(self, inner: A, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread


def _giving(method: T, kind: str) -> T:
    """The method with help that tells what it gives, and not what the asynchronous one gives."""
    shown: Any = method
    shown.__signature__ = inspect.signature(shown).replace(return_annotation=kind)
    shown.__doc__ = (shown.__doc__ or "").replace("async ", "")
    return method


def waiting(method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Blocking[A], P], T]:
    """The method, or what a subclass has in its place, for callers who wait."""

    @wraps(method)
    def wait(self: Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        own: Callable[P, Coroutine[Any, Any, T]] = getattr(self._inner, method.__name__)
        return self._thread.run(own(*args, **kwargs))

    return wait


class SyncEvents(Blocking[EventStream]):
    """Events of one pattern, from the moment the block is entered: `with client.events() as events`."""

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
        """The next event; None when there is none in time."""
        return self._thread.run(_in_time(self._inner, seconds(timeout)))


class SyncContext(Blocking[C]):
    """Opens and closes the thread and what lives in it, by `with` or, in a notebook, by `open` and `close`."""

    def __init__(self, inner: C) -> None:
        super().__init__(inner, LoopThread(inner, name="coditect client"))

    def open(self) -> Self:
        """Connects. The end of the interpreter closes what is open still.

        Raises: BrokerUnavailable, RegistryUnavailable, TopologyMismatch; SetupError when it was opened before.
        """
        self._thread.open()
        return self

    def close(self) -> None:
        """Disconnects; may be repeated. Whoever waits in another thread gets a SetupError."""
        self._thread.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def making(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, B]], kind: Callable[[B, LoopThread], K]
) -> Callable[Concatenate[Blocking[A], P], K]:
    """The method that makes something asynchronous, for callers who wait: it gives that thing's blocking kind."""

    @wraps(method)
    def make(self: Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> K:
        return kind(self._thread.run(method(self._inner, *args, **kwargs)), self._thread)

    return _giving(make, getattr(kind, "__name__", ""))


def naming(
    method: Callable[Concatenate[A, P], B], kind: Callable[[B, LoopThread], K]
) -> Callable[Concatenate[Blocking[A], P], K]:
    """The method that makes something asynchronous at once: it gives that thing's blocking kind."""

    @wraps(method)
    def name(self: Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> K:
        return kind(method(self._inner, *args, **kwargs), self._thread)

    return _giving(name, getattr(kind, "__name__", ""))


def iterating(
    method: Callable[Concatenate[A, P], AsyncIterator[T]],
) -> Callable[Concatenate[Blocking[A], P], Iterator[T]]:
    """The method that gives one thing after the other, as an ordinary iterator."""

    @wraps(method)
    def iterate(self: Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        own: Callable[P, AsyncIterator[T]] = getattr(self._inner, method.__name__)
        return _each(own(*args, **kwargs), self._thread)

    given = str(inspect.signature(method).return_annotation)
    return _giving(iterate, given.replace("AsyncIterator", "Iterator"))


class SyncRun(Blocking[Run]):
    """A started workflow: what it is, what became of it, and what may be done about it. Made by `SyncClient.start`."""

    @property
    def id(self) -> str:
        """The workflow's id; any process may ask with it."""
        return self._inner.id

    @property
    def new(self) -> bool:
        """Whether the start that made this handle had it accepted; False where its idempotency key was known."""
        return self._inner.new

    state = waiting(Run.state)
    overview = waiting(Run.overview)
    nodes = iterating(Run.nodes)
    attempts = iterating(Run.attempts)
    wait = waiting(Run.wait)
    look = waiting(Run.look)
    ending = waiting(Run.ending)
    events = iterating(Run.events)
    told = iterating(Run.told)
    cancel = waiting(Run.cancel)
    pause = waiting(Run.pause)
    resume = waiting(Run.resume)
    redrive = waiting(Run.redrive)
    answer = waiting(Run.answer)

    @overload
    def result(self, *, node: str | None = ..., timeout: Duration = ...) -> Any: ...
    @overload
    def result(self, model: type[T], *, node: str | None = ..., timeout: Duration = ...) -> T: ...
    def result(self, model: Any = Any, *, node: str | None = None, timeout: Duration = RUN_TIMEOUT) -> Any:
        """The value of the workflow's last node, or of the one that is named, validated as `model`.

        Waits for the end of the workflow, or of that node alone. Ctrl-C ends the wait and nothing else.

        Raises: TaskFailed, TaskRejected, TaskCanceled, TaskExpired with the failure's facts; ResultTimeout.
        """
        return self._thread.run(self._inner.result(model, node=node, timeout=timeout))


class SyncHandle(Blocking[Handle]):
    """Waits for one task's result, listens to its events, cancels it. Made by `SyncClient.submit`."""

    @property
    def task_id(self) -> TaskId:
        """The task's id: AMQP's `message_id`."""
        return self._inner.task_id

    @property
    def capability(self) -> str:
        """What was asked for."""
        return self._inner.capability

    @property
    def done(self) -> bool:
        """Whether the outcome is here."""
        return self._inner.done

    @property
    def run(self) -> SyncRun:
        """The workflow of a durable task: every attempt, and a redrive. Raises: InputError when it is a direct one."""
        return SyncRun(self._inner.run, self._thread)

    row = waiting(Handle.row)
    outcome = waiting(Handle.outcome)
    events = iterating(Handle.events)
    cancel = waiting(Handle.cancel)

    @overload
    def result(self, *, timeout: Duration = ...) -> Any: ...
    @overload
    def result(self, model: type[T], *, timeout: Duration = ...) -> T: ...
    def result(self, model: Any = Any, *, timeout: Duration = DEFAULT_TIMEOUT) -> Any:
        """The value, validated as `model`. Ctrl-C ends the wait, not the task; it may be asked again.

        Raises: TaskFailed, TaskRejected, TaskCanceled, TaskExpired with the failure's facts; ResultTimeout.
        """
        return self._thread.run(self._inner.result(model, timeout=timeout))

    def forget(self) -> None:
        """Nobody will ask for the result: frees what waits for it."""
        self._thread.run(_called(self._inner.forget))


def handing_many(
    method: Callable[Concatenate[A, str, Iterable[Any], P], AsyncIterator[Handle]],
) -> Callable[Concatenate[Blocking[A], str, Iterable[Any], P], Iterator[SyncHandle]]:
    """The method that submits many, as an ordinary iterator; takes the values in the caller's thread."""

    @wraps(method)
    def submit_many(
        self: Blocking[A], capability: str, values: Iterable[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Iterator[SyncHandle]:
        source = iter(values)
        while chunk := list(islice(source, CHUNK)):
            handles, error = self._thread.run(_taken(method(self._inner, capability, chunk, *args, **kwargs)))
            yield from (SyncHandle(handle, self._thread) for handle in handles)
            if error is not None:
                raise error

    return _giving(submit_many, f"Iterator[{SyncHandle.__name__}]")


async def _taken(handles: AsyncIterator[Handle]) -> tuple[list[Handle], CoditectError | None]:
    """The handles of what was taken, and what went wrong after them."""
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
        while (one := thread.run(_next(stream))) is not None:
            yield one
    except GeneratorExit:
        thread.start(_ended(stream))
        raise


async def _next(stream: AsyncIterator[T]) -> T | None:
    return await anext(stream, None)


async def _ended(stream: AsyncIterator[Any]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
