"""Executions that wait for nothing share an asyncio task.

To make, register and end a task of asyncio's costs as much as everything else that is done for a small task of
ours. So one of them, a shift, runs what is ready, one after the other, each in a context of its own. The first
that waits keeps the shift's task to itself until it ends, and whatever its capability does from then on gets
asyncio tasks of its own at once. `asyncio.current_task()`, cancellation and time-outs are therefore what a
handler expects of them; only handlers that never wait can see that they had the same task.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import Any

from coditect.agent.execution.execution import Execution
from coditect.agent.intake.queue_consumer import ReceivedTask

Work = Coroutine[Any, Any, None]
Perform = Callable[[Execution, ReceivedTask], Work]


class TaskRunner:
    """Starts executions in the order they come, in the next turn of the event loop."""

    def __init__(self, perform: Perform, loop: asyncio.AbstractEventLoop) -> None:
        self._perform = perform
        self._loop = loop
        self._ready: deque[tuple[Execution, ReceivedTask]] = deque()
        self._wait: set[str] = set()
        """Capabilities whose handlers waited."""
        self._context = copy_context()
        """Without what any handler set: an execution is often started by the end of another, in that one's context."""
        self._next: asyncio.Task[None] | None = None
        """The shift that will run what is ready."""

    def start(self, execution: Execution, received: ReceivedTask) -> None:
        """Runs it soon; `execution.work` is its asyncio task from then on."""
        if execution.task.capability in self._wait:
            execution.work = self._loop.create_task(self._perform(execution, received), context=self._context.copy())
            return
        self._ready.append((execution, received))
        if self._next is None:
            self._next = self._loop.create_task(self._run(), context=self._context.copy())

    async def _run(self) -> None:
        """One shift. What becomes ready meanwhile is for the next, so that the event loop has its turn."""
        shift, self._next = self._next, None
        ready, self._ready = self._ready, deque()
        assert shift is not None, "it was made to be run"
        try:
            while ready and not shift.cancelling():
                execution, received = ready.popleft()
                execution.work = shift
                work, context = self._perform(execution, received), copy_context()
                try:
                    awaited = context.run(work.send, None)
                except StopIteration:
                    continue
                if execution.handling:
                    self._wait.add(execution.task.capability)
                self._start_all(ready)
                await _carry_on(work, awaited, context)
        finally:
            self._start_all(ready)

    def _start_all(self, ready: deque[tuple[Execution, ReceivedTask]]) -> None:
        while ready:
            self.start(*ready.popleft())


@coroutine
def _carry_on(work: Work, awaited: Any, context: Context) -> Generator[Any, Any, None]:
    """`await work`, which has begun already, in its own context."""
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the work
                awaited = context.run(work.throw, error)
            else:
                awaited = context.run(work.send, sent)
    except StopIteration:
        return
