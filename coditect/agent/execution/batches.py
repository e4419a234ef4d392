"""The gathering of tasks into batches: one call of the handler takes many inputs, and each task gets its own value.

A batch begins when it is full, or when its first task has waited long enough. Each task stays an execution of its own:
slots, time limits, cancellation, retries and settlement are those of single tasks. A task that is canceled leaves its
batch; the call goes on for the others, and is canceled with the last of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from coditect.agent.handlers.batch import BatchPolicy, results_of
from coditect.aio.supervisor import Supervisor
from coditect.aio.threads import Carried, carry_await


@dataclass(eq=False, slots=True)
class BatchedTask:
    """A task in a batch: the arguments that it adds to the shared call of the handler, and the future of its value."""

    given: tuple[Any, ...]
    result: asyncio.Future[Carried[Any]]
    call: asyncio.Task[Any] | None = None
    """The call that the tasks of a batch share, once it has begun."""


class Batches:
    """The batches of one capability in one agent process; several may run at the same time."""

    def __init__(self, handler: Callable[..., Awaitable[Any]], policy: BatchPolicy, background: Supervisor) -> None:
        """Prepare to gather tasks, in batches as `policy` declares, for calls of a `handler` that takes lists."""
        self._handler, self._policy, self._background = handler, policy, background
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        """A clean `contextvars` context for the calls, without what any task has set."""
        self._gathered: list[BatchedTask] = []
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[asyncio.Task[Any], list[BatchedTask]] = {}
        """The calls under way, with their tasks."""
        self._within_seconds = policy.within_seconds

    async def handle(self, *given: Any) -> Any:
        """Add a task to the batch that is being gathered, and return its value, or raise its error."""
        task = BatchedTask(given, self._loop.create_future())
        self._gathered.append(task)
        if len(self._gathered) >= self._policy.size:
            self._begin()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._within_seconds, self._begin)
        try:
            return (await task.result).result()
        finally:
            if task.result.cancelled():
                self._left(task)

    def hurry(self) -> None:
        """At a drain, call the handler with the tasks gathered so far, and let no later task wait for others."""
        self._within_seconds = 0.0
        self._begin()

    def _left(self, task: BatchedTask) -> None:
        if task.call is None:
            self._gathered.remove(task)
        elif all(one.result.cancelled() for one in self._calls.get(task.call, ())):
            task.call.cancel()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tasks, self._gathered, self._timer = self._gathered, [], None
        if tasks:
            call = self._context.run(self._background.start, self._call(tasks), name="batch")
            self._calls[call] = tasks
            call.add_done_callback(self._calls.pop)
            for one in tasks:
                one.call = call

    async def _call(self, tasks: list[BatchedTask]) -> None:
        """Call the handler, and give each task its value, its own error, or the error of the call."""
        try:
            carried = await carry_await(self._called(tasks))
        except asyncio.CancelledError:
            for one in tasks:
                one.result.cancel()
            raise
        if carried.error is not None:
            results = [carried] * len(tasks)
        else:
            returned = carried.result()
            results = [Carried.failed(one) if isinstance(one, BaseException) else Carried(one) for one in returned]
        for one, result in zip(tasks, results, strict=True):
            if not one.result.done():
                one.result.set_result(result)

    async def _called(self, tasks: list[BatchedTask]) -> Sequence[Any]:
        lists = map(list, zip(*(one.given for one in tasks), strict=True))
        return results_of(await self._handler(*lists), len(tasks))
