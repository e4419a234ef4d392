"""Which tasks may have killed the agent that ran them: they run in a process of their own from then on.

A suspect is a task whose start is recorded for an agent that is gone. The record is a mark in the registry,
written before the handler starts and taken away when the task is settled or handed back; only a task that was
delivered before gets one, so that first deliveries cost nothing. Hence a task can kill two agents at most: the
first leaves no mark, the second does. An agent that hands a task back counts that in the registry, too: deliveries
that ended so are none, or the death of an agent that has what was handed back to it would make all of it suspects.
That is counted before the delivery goes back: an agent that dies in between ended the delivery unstarted as well. Only
an agent's own queue can make it three: what it hands on is delivered elsewhere as if for the second time, however often
it was handed back, and then started, here.
How often a task was delivered proves nothing, because restarts of the broker count as well; only where the registry
does not answer must it do.

Being a suspect is no punishment: a task that merely ran beside the one that killed the agent is done as any
other, attempt unchanged.
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
from coditect.model.task import Task
from coditect.registry.port import Registry
from coditect.wire import routing

log = logging.getLogger(__name__)

MANY_DELIVERIES = 50
KEEP_SECONDS = 86_400.0
"""How long a mark outlives a fleet that is gone as a whole."""
HANDED_BACK_SECONDS = 3_600.0
"""How long it is known how often a task was handed back."""
LOOK_SECONDS = 0.2
"""Pause between two looks at the lease of an agent that may be gone."""
UNANSWERED_SECONDS = 5.0
"""For so long a registry that did not answer is not asked again: each question may take a second."""
NOTE_SECONDS = 0.05
"""For so long at most what goes back waits for the registry to count that."""


class Recorded(Enum):
    """Where the registry knows a start of the task."""

    UNKNOWN = auto()
    """The registry does not answer."""
    NOWHERE_ELSE = auto()
    AT_LIVING_AGENT = auto()
    """It lost its connection and gets the delivery no more; it may be running the task still."""
    AT_GONE_AGENT = auto()


class Suspicion(Enum):
    """What speaks for it that a task kills the process that runs it."""

    NONE = auto()
    COUNTED = auto()
    """Many deliveries, and no registry that could say more."""
    RECORDED = auto()
    """A process ended while it ran the task."""


def suspicion(task: Task, deliveries: int, recorded: Recorded) -> Suspicion:
    """The rule."""
    if recorded is Recorded.AT_GONE_AGENT or killed_its_process(task):
        return Suspicion.RECORDED
    if recorded is Recorded.UNKNOWN and deliveries >= MANY_DELIVERIES:
        return Suspicion.COUNTED
    return Suspicion.NONE


def killed_its_process(task: Task) -> bool:
    """Whether an earlier attempt ended with its process, as its history says."""
    return any(isinstance(one, dict) and one.get("reason") == PROCESS_DIED for one in task.errors)


def earlier_deliveries(delivery: Delivery) -> int:
    """How often somebody may have started it: it came back, or an agent's own queue handed it on."""
    first = delivery.message.headers.get("x-first-death-queue")
    handed_on = isinstance(first, str) and routing.hands_on(first)
    return max(delivery.delivery_count, delivery.redelivered) + handed_on


def mark_of(task: Task) -> str:
    """The name of the task's mark: of this very execution; of one without an id, of what else tells it from others."""
    content: tuple[object, ...]
    if task.id is None:
        content = (routing.key_of(task), task.correlation_id or "", task.reply_to or "", task.attempt)
    else:
        content = (routing.key_of(task), task.id, task.publication, task.attempt, task.redrive)
    return hashlib.sha256("\0".join(map(str, content)).encode(errors="surrogatepass") + b"\0" + task.body).hexdigest()


Aside = Callable[[Coroutine[Any, Any, bool]], Awaitable[bool]]
"""Awaits something without holding a slot."""


@dataclass(slots=True)
class _Start:
    mark: str
    deliveries: int
    holder: AgentId | None = None
    """Whose mark it is; None when nobody knows."""


class Quarantine:
    """Records starts, and says of each whether the task is a suspect.

    `patience_seconds` is how long an agent's lease may go without renewal before the agent counts as gone.
    """

    def __init__(
        self, registry: Registry, agent_id: AgentId, background: Supervisor, *, patience_seconds: float = 3.0
    ) -> None:
        self._registry = registry
        self._agent_id = agent_id
        self._background = background
        self._patience_seconds = patience_seconds
        self._inquiries: dict[AgentId, asyncio.Task[bool]] = {}
        self._unanswered_until = 0.0

    def concerns(self, task: Task, delivery: Delivery) -> bool:
        """Whether this start must be examined; first deliveries need not."""
        return bool(task.errors) or earlier_deliveries(delivery) > 0

    @asynccontextmanager
    async def examined(self, task: Task, delivery: Delivery, aside: Aside) -> AsyncIterator[Suspicion]:
        """What speaks against the task; inside, its start is recorded. What takes a while is awaited `aside`.

        A suspect that is not settled keeps its mark for whoever gets it next.
        """
        start = _Start(mark_of(task), earlier_deliveries(delivery))
        recorded = await self._record(start, aside) if start.deliveries else Recorded.NOWHERE_ELSE
        found = suspicion(task, delivery.delivery_count, recorded)
        try:
            yield found
        except BaseException:
            if found is Suspicion.NONE and task.owner is None:
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
        return await self._registry.mark_start(
            start.mark,
            self._agent_id,
            keep_seconds=KEEP_SECONDS,
            instead_of=instead_of,
            deliveries=start.deliveries,
        )

    async def hand_back(self, tasks: Iterable[Task]) -> None:
        """Counts that these go back unstarted; who owns tasks counts himself. At most once, and in a moment."""
        marks = [mark_of(task) for task in tasks if task.owner is None]
        if marks:
            await asyncio.wait({self._background.start(self._note(marks), name="note")}, timeout=NOTE_SECONDS)

    async def _note(self, marks: list[str]) -> None:
        if self._now() < self._unanswered_until:
            return
        try:
            await self._registry.hand_back(marks, self._agent_id, keep_seconds=HANDED_BACK_SECONDS)
        except RegistryUnavailable as error:
            self._unanswered_until = self._now() + UNANSWERED_SECONDS
            log.info("What was handed back is not counted", extra={"reason": str(error)})

    async def _lives(self, agent_id: AgentId) -> bool:
        """Whether the agent lives; all who ask at the same time wait for one answer."""
        inquiry = self._inquiries.get(agent_id)
        if inquiry is None:
            inquiry = self._background.start(self._renews(agent_id), name=f"look for {agent_id}", awaited=True)
            self._inquiries[agent_id] = inquiry
            inquiry.add_done_callback(lambda _: self._inquiries.pop(agent_id))
        return await asyncio.shield(inquiry)

    async def _renews(self, agent_id: AgentId) -> bool:
        """Whether its lease is renewed; that it has not lapsed yet says nothing right after a crash."""
        before: int | None = None
        give_up = self._now() + self._patience_seconds
        while (record := await self._registry.get(agent_id)) is not None:
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
            await self._registry.clear_start(start.mark, start.holder)
        except RegistryUnavailable as error:
            log.info("The mark of a start stays until it lapses", extra={"reason": str(error)})

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
