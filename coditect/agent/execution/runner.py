"""The runner of executions; executions that never wait share one asyncio task.

Creating, registering and ending an asyncio task costs as much as all other work for a small task. So one asyncio task,
a shift, runs the executions that are ready, one after the other, each in a context of its own. The first execution that
waits keeps the shift's asyncio task to itself until it ends, and later executions of its capability get asyncio tasks
of their own at once. `asyncio.current_task()`, cancellation and time-outs are therefore what a handler expects of them;
only handlers that never wait can see that they had the same task.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import Any

from coditect.agent.execution.execution import HANDLING, Execution

Work = Coroutine[Any, Any, None]
Perform = Callable[[Execution], Work]


class TaskRunner:
    """A runner that soon starts each execution that it is given, from the event loop and not from the caller."""

    def __init__(self, perform: Perform, executions: dict[Execution, None], loop: asyncio.AbstractEventLoop) -> None:
        """Prepare to run executions by the function `perform`; each new one is added to `executions`."""
        self._perform = perform
        self._executions = executions
        self._loop = loop
        self._ready: deque[Execution] = deque()
        self._wait: set[str] = set()
        """The capabilities with a handler that has had to wait; their executions get asyncio tasks of their own."""
        self._context = copy_context()
        """A clean `contextvars` context for executions, without the changes of any earlier handler."""
        self._next: asyncio.Task[None] | None = None
        """The asyncio task that will run the executions that are ready; None when there is none."""

    def start(self, execution: Execution) -> None:
        """Run an execution soon, in an asyncio task, which is in `execution.work` when the execution begins."""
        self._executions[execution] = None  # which keeps its asyncio task alive, too
        if execution.task.capability in self._wait:
            execution.coroutine = self._perform(execution)
            execution.work = self._loop.create_task(execution.coroutine, context=self._context.copy())
            return
        self._ready.append(execution)
        if self._next is None:
            self._next = self._loop.create_task(self._run(), context=self._context.copy())

    async def _run(self) -> None:
        """Run the executions that are ready now in turn; once one has to wait, leave the rest to other asyncio tasks.

        Executions that become ready meanwhile are for the next shift, so that the event loop has its turn.
        """
        shift, self._next = self._next, None
        ready, self._ready = self._ready, deque()
        assert shift is not None, "it was made to be run"
        try:
            while ready and not shift.cancelling():
                execution = ready.popleft()
                execution.work = shift
                work = execution.coroutine = self._perform(execution)
                context = copy_context()
                try:
                    awaited = context.run(work.send, None)
                except StopIteration:
                    continue
                if execution.state in HANDLING:
                    self._wait.add(execution.task.capability)
                self._start_all(ready)
                await _carry_on(work, awaited, context)
        finally:
            self._start_all(ready)

    def _start_all(self, ready: deque[Execution]) -> None:
        while ready:
            self.start(ready.popleft())


@coroutine
def _carry_on(work: Work, awaited: Any, context: Context) -> Generator[Any, Any, None]:
    """Await a coroutine that was started already, in the coroutine's own `contextvars` context."""
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
