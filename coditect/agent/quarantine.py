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
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from coditect.agent.processes.pool import PROCESS_DIED
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Delivery
from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus
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
LOOK_SECONDS = 0.2
"""Pause between two checks of the lease of an agent that may be gone."""
UNANSWERED_SECONDS = 5.0
"""How long a registry that did not answer is left alone: each request to it may take a second."""
NOTE_SECONDS = 0.05
"""How long a hand-back of tasks waits at most for the registry to count it."""


class Recorded(Enum):
    """The registry's knowledge of a task's start at another agent: unknown, none, at a living or at a gone one."""

    UNKNOWN = auto()
    """The registry does not answer, so that no earlier start is known."""
    NOWHERE_ELSE = auto()
    AT_LIVING_AGENT = auto()
    """Another living agent has started the task, lost its connection and the delivery, and may still run the task."""
    AT_GONE_AGENT = auto()


class Suspicion(Enum):
    """The evidence that a task kills its process: none, many deliveries, or a process that ended while running it."""

    NONE = auto()
    COUNTED = auto()
    """The task was delivered many times, and the registry, which could say more, does not answer."""
    RECORDED = auto()
    """By the registry or the task's history, a process ended while it ran the task."""


def suspicion(task: Task, deliveries: int, recorded: Recorded) -> Suspicion:
    """Return the suspicion against a task, by its errors, its number of deliveries, and its recorded start."""
    if recorded is Recorded.AT_GONE_AGENT or killed_its_process(task):
        return Suspicion.RECORDED
    if recorded is Recorded.UNKNOWN and deliveries >= MANY_DELIVERIES:
        return Suspicion.COUNTED
    return Suspicion.NONE


def killed_its_process(task: Task) -> bool:
    """Tell whether a task's history has an attempt whose process died, or that ran isolated since an agent had ended.

    A handler that ends an agent in an orderly way may just raise an exception in a process of its own.
    """
    errors = [one for one in task.errors if isinstance(one, dict)]
    return any(one.get("reason") == PROCESS_DIED or one.get("isolated") is True for one in errors)


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
        recorded = await self._record(start, aside) if start.deliveries else Recorded.NOWHERE_ELSE
        found = suspicion(task, delivery.delivery_count, recorded)
        try:
            yield found
        except BaseException:
            if found is Suspicion.NONE and task.owner is None and not (start.deliveries > 1 and began()):
                await self._note([start.mark])  # before the task goes back, or the next agent finds the mark
            raise
        self._background.start(self._clear(start), name="clear a mark")  # whoever settled it is not kept

    async def _record(self, start: _Start, aside: Aside) -> Recorded:
        if self._now() < self._unanswered_until:
            return Recorded.UNKNOWN
        try:
            other = start.holder = await self._mark(start)
            if other is None:
                start.holder = self._agent_id
                return Recorded.NOWHERE_ELSE
            lives = await aside(self._lives(other))
            # it may have handed the task back meanwhile
            start.holder = await self._mark(start, instead_of=other if lives else None) or self._agent_id
        except RegistryUnavailable as error:
            self._unanswered_until = self._now() + UNANSWERED_SECONDS
            log.warning("The start of a redelivered task is not recorded", extra={"reason": str(error)})
            return Recorded.UNKNOWN
        if start.holder == self._agent_id:
            return Recorded.AT_LIVING_AGENT if lives else Recorded.NOWHERE_ELSE
        return Recorded.AT_GONE_AGENT

    async def _mark(self, start: _Start, *, instead_of: AgentId | None = None) -> AgentId | None:
        return await self.registry.mark_start(
            start.mark,
            self._agent_id,
            keep_seconds=KEEP_SECONDS,
            instead_of=instead_of,
            deliveries=start.deliveries,
        )

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
            await asyncio.sleep(LOOK_SECONDS)
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
