"""One execution under way, and the memory of those that ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coditect.agent.quarantine import Suspicion
from coditect.broker.port import Delivery
from coditect.model.result import Outcome
from coditect.model.task import ExecutionKey, Task
from coditect.wire.mail import Cancel

REMEMBER_SECONDS = 600.0
SWEEP_EVERY = 64
"""Outcomes between two looks for what is too old."""
MOST_REMEMBERED = 10_000
MOST_REMEMBERED_BYTES = 16 * 1024 * 1024


@dataclass(eq=False, slots=True)
class Execution:
    """A task that runs here. Redeliveries of it are attached: they share its outcome."""

    task: Task
    delivery: Delivery
    key: ExecutionKey | None
    """The task's `execution_key`."""
    attached: list[tuple[Task, Delivery]] | None = None
    """Redeliveries; None for none."""
    work: asyncio.Task[None] | None = None
    canceled: str | None = None
    """Why it was asked to cancel; None when it was not."""
    overdue: bool = False
    """Its time is over, and it was told."""
    by_clock: bool = False
    """It was told because of its deadline, or of how long a task may last at most, waits included."""
    handling: bool = False
    """The handler runs, so a cancellation reaches it."""
    thread: asyncio.Future[Any] | None = None
    """The thread that a plain handler runs in; it may outlive the attempt."""
    suspicion: Suspicion = Suspicion.NONE
    """Whether it may kill the process that runs it."""
    acked_early: bool = False
    """Its deliveries were acknowledged while it runs on, because it runs long; only an owned task's."""
    slot_passed_on: bool = False
    """Its slot is free, or will be when its thread ends."""
    posted: bool = False
    """Its reply is on the way, and `work` does not wait for it."""

    def wanted_by(self, cancel: Cancel) -> bool:
        """Whether all who want its outcome are meant."""
        return cancel.means(self.task) and all(cancel.means(task) for task, _ in self.attached or ())

    def cancel(self, reason: str) -> None:
        """Asks it to end; has no effect once its handler has ended."""
        if self.canceled is None and self.handling and self.work is not None:
            self.canceled = reason
            self.work.cancel()

    def expire(self) -> None:
        """Its time is over: as `cancel`."""
        if self.handling and self.work is not None:
            self.overdue = True
            self.work.cancel()

    def expire_by_clock(self) -> None:
        """Its time is over whether it ran or awaited others: as `expire`."""
        self.by_clock = True
        self.expire()

    @property
    def asked_to_end(self) -> bool:
        """Whether its handler was canceled by `cancel` or `expire`."""
        return self.overdue or self.canceled is not None

    def attach(self, task: Task, delivery: Delivery) -> None:
        """One more that wants its outcome."""
        if self.attached is None:
            self.attached = []
        self.attached.append((task, delivery))

    @property
    def lost(self) -> bool:
        """Whether none of its deliveries is ours to settle any more."""
        return self.delivery.lost and all(delivery.lost for _, delivery in self.attached or ())

    def ack(self) -> None:
        """All of them are done with."""
        self.delivery.ack()
        for _, delivery in self.attached or ():
            delivery.ack()

    def requeue(self) -> None:
        """All of them go back, for anybody."""
        self.delivery.requeue()
        for _, delivery in self.attached or ():
            delivery.requeue()

    def reject(self) -> None:
        """All of them become dead letters, by the broker."""
        self.delivery.reject()
        for _, delivery in self.attached or ():
            delivery.reject()


@dataclass(eq=False, slots=True)
class RememberedAnswer:
    """The reply of a completed execution on its way: a `Promise` of the broker's."""

    execution: Execution
    outcome: Outcome
    told: Callable[[RememberedAnswer, BaseException | None], None]
    """Called once, with what came of it."""
    over: bool = False

    def done(self) -> bool:
        """See `Promise`."""
        return self.over

    def set_result(self, _: None) -> None:
        """See `Promise`."""
        self.over = True
        self.told(self, None)

    def set_exception(self, exception: BaseException) -> None:
        """See `Promise`."""
        self.over = True
        self.told(self, exception)


class Remembered:
    """Outcomes of the last ten minutes that answer a repeated delivery; bounded in number and bytes."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[ExecutionKey, Outcome] = OrderedDict()
        self.get = self._outcomes.get
        """The outcome of an execution, if it is remembered; an old one that nobody pushed out yet, too."""
        self._bytes = 0
        self._until_sweep = SWEEP_EVERY

    def put(self, key: ExecutionKey, outcome: Outcome) -> None:
        """Keeps an outcome."""
        outcomes = self._outcomes
        if (replaced := outcomes.pop(key, None)) is not None:
            self._bytes -= len(replaced.body)
        outcomes[key] = outcome
        self._bytes += len(outcome.body)
        while len(outcomes) > MOST_REMEMBERED or self._bytes > MOST_REMEMBERED_BYTES:
            self._forget_oldest()
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep(outcome.finished_at_ms or 0)

    def _sweep(self, now_ms: int) -> None:
        self._until_sweep = SWEEP_EVERY
        too_old = now_ms - REMEMBER_SECONDS * 1000
        while self._outcomes and (next(iter(self._outcomes.values())).finished_at_ms or 0) < too_old:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, oldest = self._outcomes.popitem(last=False)
        self._bytes -= len(oldest.body)


class CanceledIds:
    """Task ids that somebody asked to cancel in the last ten minutes: their deliveries do not start.

    An owned task may be wanted again under the same id: canceled is only what was published up to a number.
    """

    def __init__(self) -> None:
        self.reasons: OrderedDict[str, tuple[float, Cancel]] = OrderedDict()
        """When, and what; the oldest first."""

    def put(self, cancel: Cancel, now: float) -> None:
        """Remembers a request."""
        self.reasons[cancel.task_id] = (now, cancel)
        while self.reasons:
            since = next(iter(self.reasons.values()))[0]
            if len(self.reasons) <= MOST_REMEMBERED and now - since <= REMEMBER_SECONDS:
                break
            self.reasons.popitem(last=False)

    def reason(self, task: Task, now: float) -> str | None:
        """Why this task was canceled; None when it was not."""
        found = self.reasons.get(task.id or "")
        if found is None or now - found[0] > REMEMBER_SECONDS:
            return None
        cancel = found[1]
        return cancel.reason if cancel.means(task) and (task.owner is None or cancel.publication is not None) else None
