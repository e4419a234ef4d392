"""The state of one execution, the outcomes of executions that ended, and the ids of canceled tasks."""

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
from coditect.wire.control_messages import Cancel

REMEMBER_SECONDS = 600.0
SWEEP_EVERY = 64
"""Number of remembered outcomes between two removals of those that are too old."""
MOST_REMEMBERED = 10_000
MOST_REMEMBERED_BYTES = 16 * 1024 * 1024


@dataclass(eq=False, slots=True)
class Execution:
    """A task that an agent process runs, with the redeliveries of the task that share the outcome."""

    task: Task
    delivery: Delivery
    key: ExecutionKey | None
    """The task's `execution_key`."""
    attached: list[tuple[Task, Delivery]] | None = None
    """The redeliveries with their tasks; None when there is none."""
    work: asyncio.Task[None] | None = None
    canceled: str | None = None
    """The reason of the request to cancel the execution; None without such a request."""
    overdue: bool = False
    """Whether the time of the handler is over and the handler was canceled for that."""
    by_clock: bool = False
    """Whether the limit that ended the handler was the deadline, or the longest life of a task with its waits."""
    handling: bool = False
    """Whether the handler runs now, so that a cancellation reaches the handler."""
    thread: asyncio.Future[Any] | None = None
    """The thread in which a plain handler runs; the thread may outlive the attempt."""
    suspicion: Suspicion = Suspicion.NONE
    """Whether the task may kill the process that runs it."""
    acked_early: bool = False
    """Whether the deliveries were acknowledged while the task runs on, because it runs long; workflow tasks only."""
    slot_passed_on: bool = False
    """Whether the slot is free already, or becomes free when the handler's thread ends."""
    posted: bool = False
    """Whether the reply is on its way, so that `work` does not wait for the reply."""

    def wanted_by(self, cancel: Cancel) -> bool:
        """Return whether a cancel message means the task and all attached tasks."""
        return cancel.means(self.task) and all(cancel.means(task) for task, _ in self.attached or ())

    def cancel(self, reason: str) -> None:
        """Cancel the handler for the given reason.

        Has no effect when the handler does not run or was canceled before.
        """
        if self.canceled is None and self.handling and self.work is not None:
            self.canceled = reason
            self.work.cancel()

    def expire(self) -> None:
        """Cancel the handler because its time is over; has no effect when the handler does not run."""
        if self.handling and self.work is not None:
            self.overdue = True
            self.work.cancel()

    def expire_by_clock(self) -> None:
        """Cancel the handler because of its limit by the clock, which counts its waits, too."""
        self.by_clock = True
        self.expire()

    @property
    def asked_to_end(self) -> bool:
        """Whether `cancel` or `expire` canceled the handler."""
        return self.overdue or self.canceled is not None

    def attach(self, task: Task, delivery: Delivery) -> None:
        """Add a redelivery of the task, which gets the execution's outcome."""
        if self.attached is None:
            self.attached = []
        self.attached.append((task, delivery))

    @property
    def lost(self) -> bool:
        """Whether every delivery is lost to the agent process, so that none can be settled here."""
        return self.delivery.lost and all(delivery.lost for _, delivery in self.attached or ())

    def ack(self) -> None:
        """Acknowledge the delivery and all attached deliveries."""
        self.delivery.ack()
        for _, delivery in self.attached or ():
            delivery.ack()

    def requeue(self) -> None:
        """Return the delivery and all attached deliveries to their queues."""
        self.delivery.requeue()
        for _, delivery in self.attached or ():
            delivery.requeue()

    def reject(self) -> None:
        """Reject the delivery and all attached deliveries, so that the broker makes dead letters of them."""
        self.delivery.reject()
        for _, delivery in self.attached or ():
            delivery.reject()


@dataclass(eq=False, slots=True)
class RememberedAnswer:
    """The reply of a completed execution on its way to the broker, as a `Promise` of the broker's port."""

    execution: Execution
    outcome: Outcome
    told: Callable[[RememberedAnswer, BaseException | None], None]
    """The callback that is called once, with the error of the publish, or None after a confirm."""
    over: bool = False

    def done(self) -> bool:
        """Return whether the reply's publish was confirmed or has failed (see `Promise`)."""
        return self.over

    def set_result(self, _: None) -> None:
        """Note the confirm and call back (see `Promise`)."""
        self.over = True
        self.told(self, None)

    def set_exception(self, exception: BaseException) -> None:
        """Note the failed publish and call back with its error (see `Promise`)."""
        self.over = True
        self.told(self, exception)


class Remembered:
    """The outcomes of the last ten minutes, which answer repeated deliveries; bounded in number and bytes."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[ExecutionKey, Outcome] = OrderedDict()
        self.get = self._outcomes.get
        """The outcome of an execution, if it is remembered; an older outcome may be found until a sweep removes it."""
        self._bytes = 0
        self._until_sweep = SWEEP_EVERY

    def put(self, key: ExecutionKey, outcome: Outcome) -> None:
        """Keep the outcome of an execution, and drop the oldest outcomes above the bounds."""
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
    """The task ids of the cancel messages of the last ten minutes; deliveries of such tasks do not start.

    A workflow task may be published again under the same id, so only publications up to a number count as canceled.
    """

    def __init__(self) -> None:
        self.reasons: OrderedDict[str, tuple[float, Cancel]] = OrderedDict()
        """The instant and the message of each cancel, by task id, oldest first."""

    def put(self, cancel: Cancel, now: float) -> None:
        """Remember a cancel message that came at the instant `now`, in seconds of the loop's clock."""
        self.reasons[cancel.task_id] = (now, cancel)
        while self.reasons:
            since = next(iter(self.reasons.values()))[0]
            if len(self.reasons) <= MOST_REMEMBERED and now - since <= REMEMBER_SECONDS:
                break
            self.reasons.popitem(last=False)

    def reason(self, task: Task, now: float) -> str | None:
        """Return why a task was canceled; None when it was not."""
        found = self.reasons.get(task.id or "")
        if found is None or now - found[0] > REMEMBER_SECONDS:
            return None
        cancel = found[1]
        return cancel.reason if cancel.means(task) and (task.owner is None or cancel.publication is not None) else None
