"""The scheduler of simulated processes: runs their callbacks on one event loop, in an order that the seed decides.

A context variable names the process that a task, callback or timer belongs to; each inherits the variable from the code
that started it. Within a process everything runs in asyncio's order. Between processes, which in reality share nothing
but the network, the seed decides. A process can also stand still.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

from coditect.agent.intake.intake import LOOK_SECONDS, Intake
from coditect.aio.supervisor import is_idle
from coditect.aio.threads import waits_for_loop
from coditect.testing.virtual_clock import VirtualClock

_OWNER: ContextVar[Actor | None] = ContextVar("coditect_testing_owner", default=None)


class Actor:
    """The scheduler's record of a simulated process: its asyncio tasks, ready callbacks, and whether it is stopped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopped = False
        self.ready: deque[tuple[asyncio.Handle, asyncio.Handle]] = deque()
        """The callbacks that are ready to run, in order, each with the handle that may cancel it."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._most_tasks = 64

    def context(self) -> Context:
        """Return a fresh `contextvars` context; code run in it, and all that it starts, belongs to the process."""
        context = copy_context()
        context.run(_OWNER.set, self)
        return context

    def add(self, task: asyncio.Task[Any]) -> None:
        """Keep a reference to a task of the process, so that a task that never ends is not garbage-collected."""
        if len(self._tasks) >= self._most_tasks:
            self._tasks = [one for one in self._tasks if not one.done()]
            self._most_tasks = 2 * len(self._tasks) + 64
        self._tasks.append(task)

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The process's asyncio tasks: all that are not done, and finished ones that were not removed yet."""
        return tuple(self._tasks)


def _owner(context: Context | None) -> Actor | None:
    return _OWNER.get() if context is None else context.get(_OWNER)


class Schedule:
    """The seeded order between simulated processes' callbacks, in place of the loop's, between `open` and `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, virtual_clock: VirtualClock, random: Random) -> None:
        self._loop = loop
        self._virtual_clock = virtual_clock
        self._random = random
        self._real_soon = loop.call_soon
        self._real_at = loop.call_at
        self._real_create = loop.create_task
        self._real_executor = loop.run_in_executor
        self._runnable: list[Actor] = []
        self._turning = False

    def open(self) -> None:
        """Replace the loop's methods, so that the callbacks of simulated processes run in the seeded order."""
        vars(self._loop).update(
            call_soon=self._soon, call_at=self._at, create_task=self._create, run_in_executor=self._execute
        )

    def close(self) -> None:
        """Give the event loop its own methods back; stopped processes never run again."""
        for name in ("call_soon", "call_at", "create_task", "run_in_executor"):
            del vars(self._loop)[name]

    def stop(self, actor: Actor) -> None:
        """Stop a process: none of its callbacks runs until `go_on`."""
        actor.stopped = True
        if actor in self._runnable:
            self._runnable.remove(actor)

    def go_on(self, actor: Actor) -> None:
        """Let a stopped process go on where it stopped; timers that passed meanwhile fire at once."""
        actor.stopped = False
        self._wake(actor)

    # -- in place of the loop's own ---------------------------------------------------------------------

    def _soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        actor = _owner(context)
        if actor is None:
            self._virtual_clock.heard = max(self._virtual_clock.heard, self._virtual_clock.now)
            return self._real_soon(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self._loop, context)
        self._enqueue(actor, handle, handle)
        return handle

    def _at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        actor = _owner(context)
        if actor is None:
            timer = self._real_at(when, callback, *args, context=context)
        else:
            handle = asyncio.Handle(callback, args, self._loop, context)
            timer = self._real_at(when, lambda: self._enqueue(actor, handle, timer))
        self._virtual_clock.set(timer, idle=self._is_idle(actor, when, callback))
        return timer

    def _is_idle(self, actor: Actor | None, when: float, callback: Callable[..., Any]) -> bool:
        """Tell whether a timer serves repeated routine work, such as heartbeats, that virtual time may skip."""
        if actor is None:
            return False
        if isinstance(getattr(callback, "__self__", None), Intake):
            return when - self._virtual_clock.now < 2 * LOOK_SECONDS
        task = asyncio.current_task(self._loop)
        return task is not None and is_idle(task)

    def _create(self, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = self._real_create(coroutine, **options)
        actor = _owner(options.get("context"))
        if actor is not None:
            actor.add(task)
        return task

    def _execute(self, executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        job = self._real_executor(executor, function, *args)
        actor = _owner(None)
        self._virtual_clock.jobs.add(job, lambda: not (waits_for_loop(job) or (actor is not None and actor.stopped)))
        return job

    # -- turns ------------------------------------------------------------------------------------------

    def _enqueue(self, actor: Actor, handle: asyncio.Handle, guard: asyncio.Handle) -> None:
        actor.ready.append((handle, guard))
        self._wake(actor)

    def _wake(self, actor: Actor) -> None:
        if actor.ready and not actor.stopped and actor not in self._runnable:
            self._runnable.append(actor)
        self._rouse()

    def _rouse(self) -> None:
        if self._runnable and not self._turning:
            self._turning = True
            self._real_soon(self._turn, context=Context())

    def _turn(self) -> None:
        """Run as many callbacks as are ready now, one at a time, each of a process that the seed picks at random."""
        self._turning = False
        for _ in range(sum(len(actor.ready) for actor in self._runnable)):
            if not self._runnable:
                break
            number = self._random.randrange(len(self._runnable))
            actor = self._runnable[number]
            handle, guard = actor.ready.popleft()
            if not actor.ready:
                del self._runnable[number]
            if not guard.cancelled():
                handle._run()
        self._rouse()
