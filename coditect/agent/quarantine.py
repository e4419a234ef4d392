"""Quarantine of suspects, tasks that may have killed the agent that ran them: they run in processes of their own.

A suspect is a task whose start is recorded for an agent that is gone. The record is a start mark in the registry,
written before the handler starts and removed when the task is settled or handed back. Only a task that was delivered
before gets a mark, so that first deliveries cost nothing. Hence a task can kill two agents at most: the first leaves no
mark, the second does.

An agent that hands a task back counts that in the registry. Deliveries that ended so say nothing against the task;
otherwise the death of an agent would make suspects of all tasks that had been handed back to it. The count is written
before the delivery goes back, since an agent that dies in between has ended the delivery unstarted as well. Only an
agent's own queue can raise the number of killed agents to three: a task that this queue hands on looks delivered for
the second time elsewhere, however often it was handed back, and then starts here.

An agent may also end in an orderly way because of a task: a handler sends SIGTERM to its own process, or cancels all of
its asyncio tasks. Nothing tells that from a restart by an operator. So a task whose handler had begun, and that the
drain had to break off, keeps its mark, but not at its first or second delivery. An innocent task that three restarts in
a row broke off runs isolated.

The number of deliveries alone proves nothing, because restarts of the broker count as well; it decides only while the
registry does not answer.

Being a suspect is no punishment: a task that merely ran beside the one that killed the agent is done as any other,
attempt unchanged.

A suspect runs in a process of its own, and a bounded number of them at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from coditect.agent.context import TaskContext
from coditect.agent.declaration import Capability
from coditect.agent.execution import Execution, ExecutionState, Suspicion
from coditect.agent.handler import AttemptOutcome, Executors, SentBack, cut_short, run_handler
from coditect.agent.intake import Intake
from coditect.agent.pool import PROCESS_DIED, ProcessDied, WorkerUnavailable
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Delivery
from coditect.errors import RegistryUnavailable, Retryable, SetupError
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus
from coditect.model.result import Failure, Status
from coditect.model.task import Task
from coditect.registry.port import Registry
from coditect.wire import routing

log = logging.getLogger(__name__)

_FIRST_DEATH = "x-first-death-queue"
MANY_DELIVERIES = 50
KEEP_SECONDS = 86_400.0
"""How long the registry keeps a task's start mark after all agents are gone."""
HANDED_BACK_SECONDS = 3_600.0
"""How long the registry keeps the count of a task's hand-backs."""
LEASE_CHECK_SECONDS = 0.2
"""Pause between two checks of the lease of an agent that may be gone."""
UNANSWERED_SECONDS = 5.0
"""How long a registry that did not answer is left alone: each request to it may take a second."""
NOTE_SECONDS = 0.05
"""How long a hand-back of tasks waits at most for the registry to count it."""


def suspicion(task: Task, deliveries: int, begun_at_gone_agent: bool | None) -> Suspicion:
    """Return the suspicion against a task, by its errors, its number of deliveries, and its recorded start.

    Whether an agent that is gone has begun the task is None while the registry does not answer.
    """
    if begun_at_gone_agent or killed_its_process(task):
        return Suspicion.RECORDED
    if begun_at_gone_agent is None and deliveries >= MANY_DELIVERIES:
        return Suspicion.COUNTED
    return Suspicion.NONE


def killed_its_process(task: Task) -> bool:
    """Tell whether a task's history has an attempt whose process died, or that ran isolated since an agent had ended.

    A handler that ends an agent in an orderly way may just raise an exception in a process of its own.
    """
    errors = [error for error in task.errors if isinstance(error, dict)]
    return any(error.get("reason") == PROCESS_DIED or error.get("isolated") is True for error in errors)


def earlier_deliveries(delivery: Delivery) -> int:
    """Return how often agents may have started a task: its redeliveries, plus one if it was in an agent's own queue."""
    first = delivery.message.headers.get(_FIRST_DEATH)
    handed_on = isinstance(first, str) and routing.hands_on(first)
    return max(delivery.delivery_count, delivery.redelivered) + handed_on


def mark_of(task: Task) -> str:
    """Return the name of the registry's start mark for one attempt of a task, the same for all its deliveries.

    For a task without an id the name is made of its key, correlation id, return address, attempt and body.
    """
    content: tuple[object, ...]
    if task.id is None:
        content = (routing.key_of(task), task.correlation_id or "", task.reply_to or "", task.attempt)
    else:
        content = (routing.key_of(task), task.id, task.publication, task.attempt, task.redrive)
    return hashlib.sha256("\0".join(map(str, content)).encode(errors="surrogatepass") + b"\0" + task.body).hexdigest()


Aside = Callable[[Coroutine[Any, Any, bool]], Awaitable[bool]]
"""A function that awaits a coroutine without holding a slot."""


@dataclass(slots=True)
class _Start:
    mark: str
    deliveries: int
    holder: AgentId | None = None
    """The agent that holds the start mark; None when the agent is not known."""


class Quarantine:
    """The recorder of task starts in the registry, which judges whether a task may have killed an agent.

    `patience_seconds` is how long an agent's lease may go without renewal before the agent counts as gone.
    """

    def __init__(
        self, registry: Registry, agent_id: AgentId, background: Supervisor, *, patience_seconds: float = 3.0
    ) -> None:
        self.registry = registry
        self._agent_id = agent_id
        self._background = background
        self._patience_seconds = patience_seconds
        self._inquiries: dict[AgentId, asyncio.Task[bool]] = {}
        self._unanswered_until = 0.0

    def concerns(self, task: Task, delivery: Delivery) -> bool:
        """Tell whether a task's start must be recorded and judged: only after an earlier delivery or attempt."""
        if task.errors or delivery.redelivered:
            return True
        return _FIRST_DEATH in delivery.message.headers and earlier_deliveries(delivery) > 0

    @asynccontextmanager
    async def examined(
        self, task: Task, delivery: Delivery, aside: Aside, *, began: Callable[[], bool] = bool
    ) -> AsyncIterator[Suspicion]:
        """Record a redelivered task's start in the registry during the block, and yield the suspicion against the task.

        `aside` awaits long checks without a slot. A suspect that is not settled keeps its mark for the next agent, and
        so does one that came a third time, when its handler `began` and was broken off by the end of its agent.
        """
        start = _Start(mark_of(task), earlier_deliveries(delivery))
        recorded = start.deliveries > 0 and await self._record(start, aside)
        found = suspicion(task, delivery.delivery_count, recorded)
        try:
            yield found
        except BaseException:
            if found is Suspicion.NONE and task.owner is None and not (start.deliveries > 1 and began()):
                await self._note([start.mark])  # before the task goes back, or the next agent finds the mark
            raise
        self._background.start(self._clear(start), name="clear a mark")  # whoever settled it is not kept

    async def _record(self, start: _Start, aside: Aside) -> bool | None:
        """Record a start, and tell whether an agent that is gone has begun the task; None without the registry."""
        if self._now() < self._unanswered_until:
            return None
        try:
            mark = partial(
                self.registry.mark_start,
                start.mark,
                self._agent_id,
                keep_seconds=KEEP_SECONDS,
                deliveries=start.deliveries,
            )
            other = start.holder = await mark()
            if other is None:
                start.holder = self._agent_id
                return False
            lives = await aside(self._lives(other))
            # it may have handed the task back meanwhile
            start.holder = await mark(instead_of=other if lives else None) or self._agent_id
        except RegistryUnavailable as error:
            self._unanswered_until = self._now() + UNANSWERED_SECONDS
            log.warning("The start of a redelivered task is not recorded", extra={"reason": str(error)})
            return None
        return start.holder != self._agent_id

    async def hand_back(self, tasks: Iterable[Task]) -> None:
        """Note in the registry that direct tasks go back unstarted, so that their start marks raise no suspicion.

        Workflow tasks are left out: their owners count by themselves.
        """
        marks = [mark_of(task) for task in tasks if task.owner is None]
        if marks:
            await asyncio.wait({self._background.start(self._note(marks), name="note")}, timeout=NOTE_SECONDS)

    async def _note(self, marks: list[str]) -> None:
        if self._now() < self._unanswered_until:
            return
        try:
            await self.registry.hand_back(marks, self._agent_id, keep_seconds=HANDED_BACK_SECONDS)
        except RegistryUnavailable as error:
            self._unanswered_until = self._now() + UNANSWERED_SECONDS
            log.info("What was handed back is not counted", extra={"reason": str(error)})

    async def _lives(self, agent_id: AgentId) -> bool:
        """Tell whether another agent is alive; concurrent callers share one check."""
        inquiry = self._inquiries.get(agent_id)
        if inquiry is None:
            inquiry = self._background.start(self._renews(agent_id), name=f"look for {agent_id}", awaited=True)
            self._inquiries[agent_id] = inquiry
            inquiry.add_done_callback(lambda _: self._inquiries.pop(agent_id))
        return await asyncio.shield(inquiry)

    async def _renews(self, agent_id: AgentId) -> bool:
        """Watch another agent's lease for up to `patience_seconds`, and return whether the agent renews it.

        A lease that has not lapsed yet proves nothing right after a crash. An agent that drains counts as gone: it
        ends, perhaps because of the task, and may renew its lease for a second after the task went back.
        """
        before: int | None = None
        give_up = self._now() + self._patience_seconds
        while (record := await self.registry.get(agent_id)) is not None:
            if record.load.status is AgentStatus.DRAINING:
                return False
            if before is not None and record.lease_ms > before:
                return True
            before = record.lease_ms
            if self._now() >= give_up:
                break
            await asyncio.sleep(LEASE_CHECK_SECONDS)
        return False

    async def _clear(self, start: _Start) -> None:
        if start.holder is None:
            return
        try:
            await self.registry.clear_start(start.mark, start.holder)
        except RegistryUnavailable as error:
            log.info("The mark of a start stays until it lapses", extra={"reason": str(error)})

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


RETURN_SECONDS = 1.0
"""Pause before a suspect goes back to its queue when no process can be started right now."""


class Isolation:
    """The limit on how many suspects (tasks that may kill their process) one agent process runs at the same time.

    Each depth of nesting has as many places as the machine has processors, at most as many as slots: a task that a
    suspect awaits can then always run in its turn.
    """

    def __init__(self, quarantine: Quarantine, intake: Intake, *, slots: int) -> None:
        self._quarantine = quarantine
        self._intake = intake
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
        elif self._intake.may_suspend(execution):
            await self._aside(execution, enter())

    async def _aside(self, execution: Execution, work: Coroutine[Any, Any, bool]) -> bool:
        """Await a coroutine with the task's slot freed; keep the slot when too many other tasks have freed theirs."""
        if not self._intake.may_suspend(execution):
            return await work
        self._intake.suspend(execution)
        try:
            answer = await work
        except BaseException:
            self._intake.abandon(execution)
            raise
        await self._intake.resume(execution)
        return answer


async def run_isolated(
    capability: Capability, execution: Execution, context: TaskContext | None, executors: Executors
) -> AttemptOutcome:
    """Run one attempt of a task that may kill its process, in a new process, and return how the attempt ended.

    A handler that no other process can load runs in this process when only the number of deliveries speaks against its
    task; otherwise the handler does not run any more. When an agent ended while it ran the task, and the handler then
    also exceeds its limit in the process of its own, the handler probably blocks: its next attempt runs in a process of
    its own, too.
    """
    try:
        ended = await run_alone(capability, execution, context, executors)
        return _blocked(ended) if execution.suspicion is Suspicion.RECORDED and execution.overdue else ended
    except SetupError as error:
        if execution.suspicion is Suspicion.RECORDED:
            return _not_run(error)
    return await run_handler(capability, execution, context, executors)


async def run_alone(
    capability: Capability, execution: Execution, context: TaskContext | None, executors: Executors
) -> AttemptOutcome:
    """Run one attempt of a handler in a new process that runs nothing else, and return how the attempt ended.

    The time to load the handler does not count to the limit.

    Raises:
        SetupError: when no other process can load the handler.
        WorkerUnavailable: when no process could be started, or too many tasks await others; retryable.
    """
    execution.enter(ExecutionState.LOADING)
    try:
        worker = await executors.workers.start(capability)
    except asyncio.CancelledError as error:
        return cut_short(execution, error, executors.ending)
    finally:
        execution.leave()
    try:
        return await run_handler(capability, execution, context, replace(executors, alone=worker))
    except SentBack as error:  # sent round it would lose what speaks against it
        raise WorkerUnavailable("Too many tasks await others; the suspect goes back") from error
    finally:
        await asyncio.shield(executors.workers.end(worker))


def _blocked(ended: AttemptOutcome) -> AttemptOutcome:
    if ended.failure is None:
        return ended
    message = f"{ended.failure.message}, and an agent that ran it before ended meanwhile: its process was killed"
    return replace(
        ended,
        failure=replace(
            ended.failure,
            reason=PROCESS_DIED,
            message=message,
            fix="see that agent's log for what blocks its event loop; make the handler a plain function, or await "
            "asyncio.to_thread(...) what blocks",
        ),
    )


def _not_run(error: SetupError) -> AttemptOutcome:
    failure = Failure(
        PROCESS_DIED,
        ProcessDied.__name__,
        f"An agent ended while it ran this task, and its handler cannot be run apart: {error}",
        fix=str(error.facts.get("fix", "")),
    )
    return AttemptOutcome(Status.FAILED, failure=failure, error=error)
