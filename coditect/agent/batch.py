"""Handlers of batches: each takes a list of inputs, optionally also one of contexts, and returns a list of values.

The types of a single task are those inside the lists. Each task is validated, limited, retried and answered by itself.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import reduce, wraps
from operator import or_
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin
from weakref import WeakKeyDictionary

from coditect.aio.threads import Carried, carry_await
from coditect.errors import SetupError
from coditect.model import arguments
from coditect.model.arguments import shown
from coditect.model.duration import Duration, seconds

DEFAULT_WITHIN: Duration = "50ms"
LONGEST_WITHIN_SECONDS = 60.0
_SHAPE = "async def handler(items: list[Item], contexts: list[Context]) -> list[Value | Exception]; contexts if wanted"


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The declared size of a capability's batches, and how long the first task of one waits for others."""

    size: int
    within_seconds: float


def batch_policy(size: int | None, within: Duration | None, *, slots: int) -> BatchPolicy | None:
    """Return the checked policy of a capability's batches; None without a size. `slots` is how many tasks may run.

    Raises:
        InputError: when a value is outside its range, or a batch needs more slots than there are.
    """
    if size is None:
        if within is not None:
            arguments.refuse("within", "Only a batch waits for other tasks", within, "batch=100 beside it")
        return None
    if arguments.whole("batch", size, 1, 10_000) > slots:
        fix = f"Agent(slots={size + 1}), of which one is kept for P0, or a smaller batch"
        arguments.refuse("batch", "Each task of a batch holds a slot", size, fix)
    within_seconds = seconds(arguments.span("within", DEFAULT_WITHIN if within is None else within))
    if not 0 < within_seconds <= LONGEST_WITHIN_SECONDS:
        arguments.refuse("within", "A task waits above 0 and at most 60 s for its batch", within, 'such as "50ms"')
    return BatchPolicy(size, within_seconds)


def checked_batch_handler(handler: Callable[..., Any], *, process: bool) -> None:
    """Check that a handler of batches runs on the event loop.

    Raises:
        SetupError: when it does not.
    """
    if process or not inspect.iscoroutinefunction(handler):
        fix = "write async def; what blocks goes to asyncio.to_thread(...), or to a pool of processes of your own"
        raise SetupError("A handler of batches is an async function, without process=True", fix=fix)


def hints_of_one(hints: Mapping[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
    """Return the annotations of a handler of batches as those of a handler of one task: the types inside the lists.

    Raises:
        SetupError: when an annotation is no list.
    """
    inside = dict(hints)
    for name in (*parameters[:2], "return"):
        if (hint := hints.get(name, Any)) is Any:
            continue
        if get_origin(hint) is not list and hint is not list:
            raise SetupError("A handler of batches takes and returns lists", parameter=name, fix=_SHAPE)
        inside[name] = next(iter(get_args(hint)), Any)
    if "return" in inside:
        inside["return"] = _without_errors(inside["return"])
    return inside


def _without_errors(hint: Any) -> Any:
    """Return the annotation of a batch's values without the exceptions that may be returned in place of a value."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    values = [member for member in members if not (isinstance(member, type) and issubclass(member, BaseException))]
    return reduce(or_, values) if values else None


def results_of(returned: Any, many: int) -> list[Carried[Any]]:
    """Return the values and errors of a batch of `many` tasks, after a check of their number.

    Raises:
        SetupError: when there is not one for each task; no attempt is made again, for the code would do the same.
        BaseException: what the class of the returned list raises when it is read.
    """
    number: int | str
    if issubclass(type(returned), list | tuple):  # `isinstance` would ask each value itself for its class
        results = [
            Carried.failed(value) if issubclass(type(value), BaseException) else Carried(value) for value in returned
        ]
        if len(results) == many:
            return results
        number = len(results)
    else:
        number = shown(returned)
    raise SetupError(
        "A handler of batches returns a list with one value, or exception, for each task, in their order",
        tasks=many,
        returned=number,
    )


def single_task_handler(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return a handler of one task that calls a handler of batches with lists of one element."""

    @wraps(handler)
    async def run_single(*handler_arguments: Any) -> Any:
        (ended,) = results_of(await handler(*([argument] for argument in handler_arguments)), 1)
        return ended.result()

    return run_single


# The gathering of tasks into batches: one call of the handler takes many inputs, and each task gets its own value.
#
# A batch begins when it is full, or when its first task has waited long enough. Each task stays an execution of its
# own: slots, time limits, cancellation, retries and settlement are those of single tasks. A task that is canceled
# leaves its batch; the call goes on for the others, and is canceled with the last of them.


@dataclass(eq=False, slots=True)
class BatchedTask:
    """A task in a batch: the arguments that it adds to the shared call of the handler, and the future of its value."""

    arguments: tuple[Any, ...]
    result: asyncio.Future[Carried[Any]]
    call: asyncio.Task[Any] | None = None
    """The call that the tasks of a batch share, once it has begun."""


_AWAITED: WeakKeyDictionary[asyncio.Task[Any], asyncio.Task[Any]] = WeakKeyDictionary()
"""The canceled calls whose end is waited for, each by the asyncio task of the last task of its batch."""


def awaited_call(work: asyncio.Task[Any] | None) -> Coroutine[Any, Any, Any] | None:
    """Return the call of a batch for whose end an asyncio task waits, after the call's cancellation; None without."""
    call = None if work is None else _AWAITED.get(work)
    return None if call is None else cast("Coroutine[Any, Any, Any]", call.get_coro())


class Batches:
    """The batches of one capability in one agent process; several may run at the same time."""

    def __init__(self, handler: Callable[..., Awaitable[Any]], policy: BatchPolicy) -> None:
        """Prepare to gather tasks, in batches as `policy` declares, for calls of a `handler` that takes lists."""
        self._handler, self._policy = handler, policy
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        """A clean `contextvars` context for the calls, without what any task has set."""
        self._gathered: list[BatchedTask] = []
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[asyncio.Task[Any], list[BatchedTask]] = {}
        """The calls under way, with their tasks; one that swallows its cancellation is left behind at the end."""
        self._within_seconds = policy.within_seconds

    async def handle(self, *handler_arguments: Any) -> Any:
        """Add a task to the batch that is being gathered, and return its value, or raise its error."""
        task = BatchedTask(handler_arguments, self._loop.create_future())
        self._gathered.append(task)
        if len(self._gathered) >= self._policy.size:
            self._begin()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._within_seconds, self._begin)
        try:
            return (await task.result).result()
        finally:
            if task.result.cancelled():
                await self._left(task)

    def hurry(self) -> None:
        """At a drain, call the handler with the tasks gathered so far, and let no later task wait for others."""
        self._within_seconds = 0.0
        self._begin()

    async def _left(self, task: BatchedTask) -> None:
        """Take a canceled task out of its batch; the last one cancels the call, and waits for the call's end.

        Its execution keeps its slot until then, so a call that swallows the cancellation is bounded like a handler of
        one task. Further cancellations go to the call, too.
        """
        if task.call is None:
            self._gathered.remove(task)
        elif all(other.result.cancelled() for other in self._calls.get(task.call, ())):
            if not task.call.cancelling():  # another task of the batch may have ended at the same moment
                task.call.cancel()
            if (work := asyncio.current_task()) is not None:
                _AWAITED[work] = task.call
            while not task.call.done():
                try:
                    await asyncio.wait({task.call})
                except asyncio.CancelledError:
                    task.call.cancel()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tasks, self._gathered, self._timer = self._gathered, [], None
        if tasks:
            call = self._loop.create_task(self._call(tasks), name="batch", context=self._context.copy())
            self._calls[call] = tasks
            call.add_done_callback(self._calls.pop)
            for task in tasks:
                task.call = call

    async def _call(self, tasks: list[BatchedTask]) -> None:
        """Call the handler, and give each task its value, its own error, or the error of the call."""
        try:
            carried = await carry_await(self._called(tasks))
        except asyncio.CancelledError:
            for task in tasks:
                task.result.cancel()
            raise
        results = [carried] * len(tasks) if carried.error is not None else carried.result()
        for task, result in zip(tasks, results, strict=True):
            if not task.result.done():
                task.result.set_result(result)

    async def _called(self, tasks: list[BatchedTask]) -> list[Carried[Any]]:
        lists = map(list, zip(*(task.arguments for task in tasks), strict=True))
        return results_of(await self._handler(*lists), len(tasks))
