"""Isolation of suspects, the tasks that may kill their process: a process per attempt, a bounded number at a time."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from coditect.agent.declaration import Capability
from coditect.agent.execution.execution import Execution, ExecutionState
from coditect.agent.execution.handler import Executors, HandlerEnd, SentBack, cut_short, limit_seconds, run_handler
from coditect.agent.handlers.context import TaskContext
from coditect.agent.processes.pool import PROCESS_DIED, ProcessDied, WorkerUnavailable
from coditect.agent.quarantine import Quarantine, Suspicion
from coditect.errors import Retryable, SetupError
from coditect.model.result import Failure, Status

log = logging.getLogger(__name__)

RETURN_SECONDS = 1.0
"""Pause before a suspect goes back to its queue when no process can be started right now."""


class Suspensions(Protocol):
    """The port through which a task waits without its slot."""

    def may_suspend(self, execution: Execution, most: int) -> bool:
        """Tell whether a task may wait without its slot, which only a bounded number of tasks may do.

        A task that waits so already may, and any task while fewer than `most` tasks of its depth of nested requests do.
        """

    def suspend(self, execution: Execution) -> None:
        """Free the slot of a task; `resume` or `abandon` must follow."""

    async def resume(self, execution: Execution) -> bool:
        """End one wait of a task; after its last wait, take a slot for it again as soon as one is free."""

    def abandon(self, execution: Execution) -> None:
        """End one wait of a task that does not go on after it, such as a canceled one; it takes no slot again."""


class Isolation:
    """The limit on how many suspects (tasks that may kill their process) one agent process runs at the same time.

    Each depth of nesting has as many places as the machine has processors, at most as many as slots: a task that a
    suspect awaits can then always run in its turn.
    """

    def __init__(self, quarantine: Quarantine, intake: Suspensions, *, slots: int, most_suspended: int) -> None:
        self._quarantine = quarantine
        self._intake = intake
        self._most_suspended = most_suspended
        places = min(slots, os.cpu_count() or 1)
        self._places: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(places))

    @asynccontextmanager
    async def around(self, execution: Execution) -> AsyncIterator[Suspicion]:
        """Record a redelivered task's start for the block, and yield the suspicion that the task kills its process.

        Before the block the task may have to wait: for checks, or while too many tasks under suspicion run.
        """
        aside = partial(self._aside, execution)

        def began() -> bool:
            return execution.state is ExecutionState.HANDLED

        async with self._quarantine.examined(execution.task, execution.delivery, aside, began=began) as suspicion:
            if suspicion is Suspicion.NONE:
                yield suspicion
            else:
                async with self.place(execution):
                    yield suspicion

    @asynccontextmanager
    async def place(self, execution: Execution) -> AsyncIterator[None]:
        """Wait until few enough tasks run that may kill their process, then count this one as such during the block.

        It waits without its slot; a task that may not do so runs at once, uncounted. An error of the block that is
        Retryable is raised again after 1 s.
        """
        async with AsyncExitStack() as stack:
            await self._take_place(execution, stack)
            facts = {
                "task_id": execution.task.id,
                "capability": execution.task.capability,
                "attempt": execution.task.attempt,
            }
            log.warning("A task that may have killed its process runs in one of its own", extra=facts)
            try:
                yield
            except Retryable:
                await asyncio.sleep(RETURN_SECONDS)
                raise

    async def _take_place(self, execution: Execution, stack: AsyncExitStack) -> None:
        """Until `stack` closes, count a task that may kill its process; first wait while too many such tasks run.

        When all places are taken and the task may not wait without its slot, the task goes on without a place: slots
        bound the number of such tasks.
        """
        place = self._places[execution.task.depth]

        async def enter() -> bool:
            await stack.enter_async_context(place)
            return True

        if not place.locked():
            await enter()
        elif self._intake.may_suspend(execution, self._most_suspended):
            await self._aside(execution, enter())

    async def _aside(self, execution: Execution, work: Coroutine[Any, Any, bool]) -> bool:
        """Await a coroutine with the task's slot freed; keep the slot when too many other tasks have freed theirs."""
        if not self._intake.may_suspend(execution, self._most_suspended):
            return await work
        self._intake.suspend(execution)
        try:
            answer = await work
        except BaseException:
            self._intake.abandon(execution)
            raise
        await self._intake.resume(execution)
        return answer


async def run_apart(
    capability: Capability,
    execution: Execution,
    context: TaskContext | None,
    executors: Executors,
    *,
    now_ms: int,
) -> HandlerEnd:
    """Run one attempt of a task that may kill its process, in a new process, and return how the attempt ended.

    A handler that no other process can load runs in this process when only the number of deliveries speaks against its
    task; otherwise the handler does not run any more. When an agent ended while it ran the task, and the handler then
    also exceeds its limit in the process of its own, the handler probably blocks: its next attempt runs in a process of
    its own, too.
    """
    try:
        ended = await run_alone(capability, execution, context, executors, now_ms=now_ms)
        return _blocked(ended) if execution.suspicion is Suspicion.RECORDED and execution.overdue else ended
    except SetupError as error:
        if execution.suspicion is Suspicion.RECORDED:
            return _not_run(error)
    return await run_handler(capability, execution, context, executors, now_ms=now_ms)


async def run_alone(
    capability: Capability,
    execution: Execution,
    context: TaskContext | None,
    executors: Executors,
    *,
    now_ms: int,
) -> HandlerEnd:
    """Run one attempt of a handler in a new process that runs nothing else, and return how the attempt ended.

    The time to load the handler does not count to the limit.

    Raises:
        SetupError: when no other process can load the handler.
        WorkerUnavailable: when no process could be started, or too many tasks await others; retryable.
    """
    execution.load()
    try:
        worker = await executors.workers.start(capability)
    except asyncio.CancelledError as error:
        return cut_short(execution, error, limit_seconds(capability, execution.task, now_ms), executors.ending)
    finally:
        execution.leave()
    try:
        return await run_handler(capability, execution, context, replace(executors, alone=worker), now_ms=now_ms)
    except SentBack as error:  # sent round it would lose what speaks against it
        raise WorkerUnavailable("Too many tasks await others; the suspect goes back") from error
    finally:
        await asyncio.shield(executors.workers.end(worker))


def _blocked(ended: HandlerEnd) -> HandlerEnd:
    if ended.failure is None:
        return ended
    told = f"{ended.failure.message}, and an agent that ran it before ended meanwhile: its process was killed"
    return replace(
        ended,
        failure=replace(
            ended.failure,
            reason=PROCESS_DIED,
            message=told,
            fix="see that agent's log for what blocks its event loop; make the handler a plain function, or await "
            "asyncio.to_thread(...) what blocks",
        ),
    )


def _not_run(error: SetupError) -> HandlerEnd:
    failure = Failure(
        PROCESS_DIED,
        ProcessDied.__name__,
        f"An agent ended while it ran this task, and its handler cannot be run apart: {error}",
        fix=str(error.facts.get("fix", "")),
    )
    return HandlerEnd(Status.FAILED, failure=failure, error=error)
