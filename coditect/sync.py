"""The blocking client, for callers without an event loop: scripts, notebooks and threads.

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
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from coditect.aio.threads import LoopThread
from coditect.client.approvals import Approvals
from coditect.client.client import Agents, Client, Tasks
from coditect.client.coordination import FleetBreakers, Handoffs, Locks, Threads
from coditect.client.handle import DEFAULT_RESULT_TIMEOUT, Handle
from coditect.client.schedules import Schedules, Triggers
from coditect.client.webhooks import Webhooks
from coditect.client.workflow_run import DEFAULT_TIMEOUT as RUN_TIMEOUT
from coditect.client.workflow_run import WorkflowRun
from coditect.client.workflows import Workflows
from coditect.collaboration.lessons import Lessons
from coditect.collaboration.locks import BlockingLock, Lock
from coditect.collaboration.state import SharedState
from coditect.collaboration.threads import Thread
from coditect.errors import CoditectError
from coditect.messaging.event_stream import EventStream
from coditect.model.duration import Duration, seconds
from coditect.model.ids import TaskId
from coditect.model.message import Event

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


def blocking_call(
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


def blocking_factory(
    method: Callable[Concatenate[A_co, P], Coroutine[Any, Any, B]], kind: Callable[[B, LoopThread], K]
) -> Callable[Concatenate[Blocking[A_co], P], K]:
    """Return the blocking counterpart of a coroutine method, which wraps the method's result in the class `kind`.

    The class `kind` is the blocking counterpart of the class of that result.
    """

    @wraps(method)
    def make(self: Blocking[A_co], /, *args: P.args, **kwargs: P.kwargs) -> K:
        return kind(self._thread.run(method(self._inner, *args, **kwargs)), self._thread)

    return _giving(make, getattr(kind, "__name__", ""))


def blocking_child(
    method: Callable[Concatenate[A_co, P], B], kind: Callable[[B, LoopThread], K]
) -> Callable[Concatenate[Blocking[A_co], P], K]:
    """Return the blocking counterpart of a plain method, which wraps the method's result in the class `kind`.

    The class `kind` is the blocking counterpart of the class of that result.
    """

    @wraps(method)
    def name(self: Blocking[A_co], /, *args: P.args, **kwargs: P.kwargs) -> K:
        return kind(method(self._inner, *args, **kwargs), self._thread)

    return _giving(name, getattr(kind, "__name__", ""))


def blocking_property(given: Any, kind: Callable[[Any, LoopThread], K]) -> K:
    """Return the blocking counterpart of a property, with its docstring; the value is wrapped in the class `kind`."""
    name = getattr(given, "attrname", None) or given.fget.__name__

    def read(self: Blocking[Any]) -> K:
        return kind(getattr(self._inner, name), self._thread)

    return cast("K", property(read, doc=given.__doc__))


def blocking_iterator(
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
    """The shared state of a workflow or of a named space, for code without an event loop; see `SyncClient.state`."""

    @property
    def name(self) -> str:
        """The name by which requests call the shared state: `workflow:` and an id, or `space:` and a name."""
        return self._inner.name

    get = blocking_call(SharedState.get)
    entry = blocking_call(SharedState.entry)
    put = blocking_call(SharedState.put)
    merge = blocking_call(SharedState.merge)
    update = blocking_call(SharedState.update)
    delete = blocking_call(SharedState.delete)
    entries = blocking_iterator(SharedState.entries)
    history = blocking_call(SharedState.history)
    watch = blocking_iterator(SharedState.watch)


class SyncLock(BlockingLock):
    """The lock of a blocking client, held inside of `with client.lock("repo:x") as lock`; see `SyncClient.lock`."""

    def __init__(self, lock: Lock, thread: LoopThread) -> None:
        super().__init__(lock, thread.run, closing=thread.run)


class SyncWorkflowRun(Blocking[WorkflowRun]):
    """The blocking handle of a workflow: reads its state and results, and controls it; see `SyncClient.start`."""

    @property
    def id(self) -> str:
        """The workflow's id, by which any process can make a handle (`SyncClient.workflows`)."""
        return self._inner.id

    @property
    def new(self) -> bool:
        """True when the call that made this handle started the workflow; False for a known `key`, or a handle by id."""
        return self._inner.new

    shared = blocking_property(WorkflowRun.shared, SyncSharedState)
    state = blocking_call(WorkflowRun.state)
    overview = blocking_call(WorkflowRun.overview)
    nodes = blocking_iterator(WorkflowRun.nodes)
    attempts = blocking_iterator(WorkflowRun.attempts)
    wait = blocking_call(WorkflowRun.wait)
    look = blocking_call(WorkflowRun.look)
    input = blocking_call(WorkflowRun.input)
    ending = blocking_call(WorkflowRun.ending)
    events = blocking_iterator(WorkflowRun.events)
    told = blocking_iterator(WorkflowRun.told)
    cancel = blocking_call(WorkflowRun.cancel)
    pause = blocking_call(WorkflowRun.pause)
    resume = blocking_call(WorkflowRun.resume)
    redrive = blocking_call(WorkflowRun.redrive)
    grant = blocking_call(WorkflowRun.grant)
    deny = blocking_call(WorkflowRun.deny)
    signal = blocking_call(WorkflowRun.signal)
    checkpoint = blocking_call(WorkflowRun.checkpoint)
    checkpoints = blocking_call(WorkflowRun.checkpoints)
    restores = blocking_call(WorkflowRun.restores)
    plan_restore = blocking_call(WorkflowRun.plan_restore)
    restore = blocking_call(WorkflowRun.restore)

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
        """The capability that the task asks for; empty for a handle that `SyncClient.tasks` made."""
        return self._inner.capability

    @property
    def done(self) -> bool:
        """True when the outcome has arrived; for a durable task, when `outcome` or `result` has fetched it."""
        return self._inner.done

    run = blocking_property(Handle.run, SyncWorkflowRun)
    row = blocking_call(Handle.row)
    outcome = blocking_call(Handle.outcome)
    stream = blocking_iterator(Handle.stream)
    events = blocking_iterator(Handle.events)
    cancel = blocking_call(Handle.cancel)

    @overload
    def result(self, *, timeout: Duration = ...) -> Any: ...
    @overload
    def result(self, model: type[T], *, timeout: Duration = ...) -> T: ...
    def result(self, model: Any = Any, *, timeout: Duration = DEFAULT_RESULT_TIMEOUT) -> Any:
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


def blocking_submit_many(
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
        while (item := thread.run(_next(stream))) is not _END:
            yield item
    except GeneratorExit:
        thread.start(_ended(stream))
        raise


async def _next(stream: AsyncIterator[T]) -> Any:
    return await anext(stream, _END)


async def _ended(stream: AsyncIterator[Any]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()


class SyncThread(Blocking[Thread]):
    """A discussion thread as one participant uses it, for code without an event loop; see `SyncClient.threads`."""

    @property
    def id(self) -> str:
        """The id of the thread."""
        return self._inner.id

    say = blocking_call(Thread.say)
    history = blocking_iterator(Thread.history)
    message = blocking_call(Thread.message)
    listen = blocking_iterator(Thread.listen)
    ask = blocking_call(Thread.ask)
    answer = blocking_call(Thread.answer)
    show = blocking_call(Thread.show)
    read = blocking_call(Thread.read)
    close = blocking_call(Thread.close)


class SyncThreads(Blocking[Threads]):
    """The discussion threads that the control plane keeps, for code without an event loop; see `SyncClient.threads`."""

    open = blocking_factory(Threads.open, SyncThread)
    get = blocking_child(Threads.get, SyncThread)
    list = blocking_iterator(Threads.list)


class SyncHandoffs(Blocking[Handoffs]):
    """The handoffs of running tasks, for code without an event loop; see `SyncClient.handoffs`."""

    list = blocking_iterator(Handoffs.list)
    get = blocking_call(Handoffs.get)
    request = blocking_call(Handoffs.request)
    accept = blocking_call(Handoffs.accept)
    decline = blocking_call(Handoffs.decline)
    withdraw = blocking_call(Handoffs.withdraw)


class SyncLessons(Blocking[Lessons]):
    """The lessons learned from failed tasks, for code without an event loop; see `SyncClient.lessons`."""

    list = blocking_call(Lessons.list)
    about = blocking_call(Lessons.about)
    forget = blocking_call(Lessons.forget)


class SyncSchedules(Blocking[Schedules]):
    """The schedules that the control plane keeps, for code without an event loop; see `SyncClient.schedules`."""

    create = blocking_call(Schedules.create)
    list = blocking_iterator(Schedules.list)
    get = blocking_call(Schedules.get)
    pause = blocking_call(Schedules.pause)
    resume = blocking_call(Schedules.resume)
    run = blocking_call(Schedules.run)
    delete = blocking_call(Schedules.delete)


class SyncTriggers(Blocking[Triggers]):
    """The triggers that the control plane keeps, for code without an event loop; see `SyncClient.triggers`."""

    create = blocking_call(Triggers.create)
    list = blocking_iterator(Triggers.list)
    pause = blocking_call(Triggers.pause)
    resume = blocking_call(Triggers.resume)
    delete = blocking_call(Triggers.delete)


class SyncAgents(Blocking[Agents]):
    """The living agents, for code without an event loop; see `SyncClient.agents`."""

    list = blocking_call(Agents.list)


class SyncTasks(Blocking[Tasks]):
    """The tasks by their ids, for code without an event loop; see `SyncClient.tasks`."""

    get = blocking_child(Tasks.get, SyncHandle)
    cancel = blocking_call(Tasks.cancel)


class SyncWorkflows(Blocking[Workflows]):
    """The workflows that the control plane keeps, for code without an event loop; see `SyncClient.workflows`."""

    start = blocking_factory(Workflows.start, SyncWorkflowRun)
    get = blocking_child(Workflows.get, SyncWorkflowRun)
    list = blocking_iterator(Workflows.list)
    dead_nodes = blocking_iterator(Workflows.dead_nodes)


class SyncApprovals(Blocking[Approvals]):
    """The questions to people and the audit trail, for code without an event loop; see `SyncClient.approvals`."""

    list = blocking_iterator(Approvals.list)
    get = blocking_call(Approvals.get)
    grant = blocking_call(Approvals.grant)
    deny = blocking_call(Approvals.deny)
    audit = blocking_iterator(Approvals.audit)
    autonomy = blocking_call(Approvals.autonomy)


class SyncLocks(Blocking[Locks]):
    """The locks of the fleet, for code without an event loop; see `SyncClient.locks`."""

    list = blocking_iterator(Locks.list)
    acquire = blocking_call(Locks.acquire)
    renew = blocking_call(Locks.renew)
    release = blocking_call(Locks.release)
    release_all = blocking_call(Locks.release_all)


class SyncWebhooks(Blocking[Webhooks]):
    """The webhooks that the control plane keeps, for code without an event loop; see `SyncClient.webhooks`."""

    create = blocking_call(Webhooks.create)
    stored = blocking_call(Webhooks.stored)
    list = blocking_iterator(Webhooks.list)
    get = blocking_call(Webhooks.get)
    enable = blocking_call(Webhooks.enable)
    disable = blocking_call(Webhooks.disable)
    delete = blocking_call(Webhooks.delete)
    delivered = blocking_call(Webhooks.delivered)


class SyncBreakers(Blocking[FleetBreakers]):
    """The circuit breakers of the fleet, for code without an event loop; see `SyncClient.breakers`."""

    list = blocking_iterator(FleetBreakers.list)
    get = blocking_call(FleetBreakers.get)
    open = blocking_call(FleetBreakers.open)
    reset = blocking_call(FleetBreakers.reset)


class SyncClient(SyncContext[Client]):
    """The blocking client for code without an event loop: scripts, notebooks, threads; made by `Client.sync`.

    `with` opens and closes the client; in a notebook, `open()` and `close()` do. Threads may share a client. Each call
    waits; Ctrl-C ends the wait at once, and the client stays usable. A coroutine must not call the client: a waiting
    call blocks the coroutine's event loop. Every method raises the errors of its counterpart in `Client`.

    Raises:
        SetupError: by a method that needs the thread, before `open`, after `close`, and after a fork.
    """

    @property
    def name(self) -> str:
        """The client's name, which its reply queue and its events carry."""
        return self._inner.name

    agents = blocking_property(Client.agents, SyncAgents)
    tasks = blocking_property(Client.tasks, SyncTasks)
    workflows = blocking_property(Client.workflows, SyncWorkflows)
    approvals = blocking_property(Client.approvals, SyncApprovals)
    schedules = blocking_property(Client.schedules, SyncSchedules)
    triggers = blocking_property(Client.triggers, SyncTriggers)
    threads = blocking_property(Client.threads, SyncThreads)
    handoffs = blocking_property(Client.handoffs, SyncHandoffs)
    breakers = blocking_property(Client.breakers, SyncBreakers)
    locks = blocking_property(Client.locks, SyncLocks)
    webhooks = blocking_property(Client.webhooks, SyncWebhooks)
    lessons = blocking_property(Client.lessons, SyncLessons)
    submit = blocking_factory(Client.submit, SyncHandle)
    submit_many = blocking_submit_many(Client.submit_many)
    request = blocking_call(Client.request)
    ask_all = blocking_iterator(Client.ask_all)
    start = blocking_factory(Client.start, SyncWorkflowRun)
    page = blocking_call(Client.page)
    broadcast = blocking_call(Client.broadcast)
    emit = blocking_call(Client.emit)
    emit_data = blocking_call(Client.emit_data)
    events = blocking_child(Client.events, SyncEvents)
    lock = blocking_child(Client.lock, SyncLock)
    elect = blocking_child(Client.elect, SyncLock)
    state = blocking_child(Client.state, SyncSharedState)
