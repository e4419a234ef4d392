"""The part of the intake that pauses queues, so that tasks wait at the broker, and fetches single tasks from them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping

from coditect.agent.execution.execution import Execution
from coditect.agent.intake.queue_consumer import PauseReason, QueueConsumer, Screen
from coditect.agent.intake.slots import Slots
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Delivery
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.task import Task

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5


class QueuePauses:
    """The base class of `Intake` that pauses and resumes queues, and fetches single tasks from paused ones."""

    _broker: Broker
    _slots: Slots
    _background: Supervisor
    _consumers: dict[str, QueueConsumer]
    _closed: MutableMapping[QueueConsumer, None]
    _screen: Screen
    _loop: asyncio.AbstractEventLoop
    _returns: Callable[[Iterable[Task]], Awaitable[None]]
    closed: bool

    def pause(self, queue: str, reason: PauseReason) -> None:
        """Take no more tasks of a queue, and return those that have not started; those that run go on."""
        consumer = self._consumers.get(queue)
        if consumer is not None and reason not in consumer.paused:
            consumer.paused.add(reason)
            self._reconsider(consumer)

    def resume_queue(self, queue: str, reason: PauseReason) -> None:
        """Remove one reason of a queue's pause; when no other reason is left, take the queue's tasks again."""
        consumer = self._consumers.get(queue)
        if consumer is not None and reason in consumer.paused:
            consumer.paused.remove(reason)
            if not consumer.paused:
                self._background.start(self._reopen(consumer), name=f"resume {queue}")

    async def give_back(self, task: Task, delivery: Delivery) -> None:
        """Return a task that has not begun to its queue; its delivery does not count as a start."""
        await self._returns([task])
        delivery.requeue()

    async def holds_tasks(self, queue: str) -> bool:
        """Tell whether a queue has tasks that no agent has taken.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        stats = await self._broker.stats(queue)
        return stats is not None and stats.messages > 0

    def can_start(self, level: Priority) -> bool:
        """Tell whether a slot is free for a task of a priority level."""
        return self._slots.startable(level) > 0

    async def reserve(self, level: Priority) -> None:
        """Wait until a priority level gets a slot, for `fetch_one` to use; `release` must follow if no task starts."""
        await self._next_slot(level)

    def release(self, level: Priority) -> None:
        """Give a reserved slot back."""
        self._free(level)

    async def fetch_one(self, queue: str, *, reserved: bool = False) -> bool:
        """Start the next task of a paused queue; return False if the queue is empty or the agent drains.

        The task starts on the caller's `reserved` slot, else on a slot more than there are if none is free.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        consumer = self._consumers[queue]
        while (delivery := await self._broker.get(queue)) is not None:
            if self.closed:
                consumer.give_back(delivery)
                return False
            if (execution := self._screen(delivery, consumer)) is not None:
                if not reserved:
                    self._slots.take(consumer.level)
                self._go(consumer, execution)
                return True
        return False

    def _shut(self, consumer: QueueConsumer) -> None:
        """Close a paused queue's consumers, if any, and return its waiting tasks, if any, in the background."""
        if consumer.consumers or consumer.waiting:
            consumer.changing = True
            self._background.start(self._close_paused(consumer), name=f"pause {consumer.queue}")

    async def _close_paused(self, consumer: QueueConsumer) -> None:
        try:
            self._closed[consumer] = None
            await consumer.close_consumers()
            await self._give_back_all(consumer, consumer.waiting)
        except CoditectError as error:
            log.warning("A queue cannot be paused yet", extra={"queue": consumer.queue, "reason": str(error)})
            await asyncio.sleep(AGAIN_SECONDS)
        finally:
            consumer.changing = False
            self._reconsider(consumer)

    async def _reopen(self, consumer: QueueConsumer) -> None:
        """Consume a queue again; a consumer that cannot be opened now is opened by the intake's own checks."""
        consumer.hungry = True
        if not consumer.changing and not consumer.consumers:
            consumer.changing = True
            try:
                await self._widen(consumer, max(1, self._slots.startable(consumer.level)))
                consumer.hungry = False
            except CoditectError as error:
                log.warning("A queue cannot be resumed yet", extra={"queue": consumer.queue, "reason": str(error)})
            finally:
                consumer.changing = False
        self._reconsider(consumer)

    def _go(self, consumer: QueueConsumer, execution: Execution) -> None:
        raise NotImplementedError

    async def _next_slot(self, level: Priority) -> bool:
        raise NotImplementedError

    def _free(self, level: Priority) -> None:
        raise NotImplementedError

    def _reconsider(self, consumer: QueueConsumer) -> None:
        raise NotImplementedError

    async def _widen(self, consumer: QueueConsumer, many: int) -> None:
        raise NotImplementedError

    async def _give_back_all(self, consumer: QueueConsumer, waiting: Iterable[Execution]) -> None:
        raise NotImplementedError
