"""The consumption of an agent's queues: how many deliveries the agent holds, and which task starts next.

An agent holds no task that it cannot start. Each queue has credit for what its priority level could start: free slots,
and the slots of tasks that are known to be quick. When a level can start nothing more, its consumers with unused credit
are closed; a slot that gets free then has the queues asked one by one, in the levels' turns. A task that arrives all
the same goes back for an idle peer, at most three times in its life. See `docs/adr/0004`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sized
from functools import partial
from itertools import islice

from coditect.agent.execution.execution import Execution
from coditect.agent.intake.pauses import QueuePauses
from coditect.agent.intake.queue_consumer import QueueConsumer, Screen
from coditect.agent.intake.slots import Slots, most_in_hand
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Delivery
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.task import Task

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.01
FETCH_SECONDS = 0.025
"""The time that a new consumer has to get messages, and the pause between fetches from an empty queue."""
MANY = 4
"""The number of free slots from which a new consumer is cheaper than a `basic.get` for each slot."""
EMPTY_SECONDS = 0.1
"""The time after a queue was found empty in which it gets a consumer rather than another `basic.get`."""
SLOT_SECONDS = 1.0
"""How long a task that may begin elsewhere waits for a slot before the agent looks whether others are busy as well."""
MOST_SLOT_SECONDS = 16.0
"""The longest pause between two such looks, each of which is a call to the broker."""
RETRY_SECONDS = 0.5
"""The pause after a failed `basic.get`; a queue that does not answer for so long loses its reserved slots."""
MOST_AT_EACH_LOOK = 32
MOST_CLOSED = 64
"""The most queues without a consumer for want of slots: as many as can be consumed again in a moment."""


class Intake(QueuePauses):
    """The intake of one agent process: the consumers of all its queues, and its slots."""

    def __init__(
        self,
        broker: Broker,
        slots: Slots,
        background: Supervisor,
        unsettled: Sized,
        *,
        screen: Screen,
        start: Callable[[Execution], None],
        returns: Callable[[Iterable[Task]], Awaitable[None]],
    ) -> None:
        """Prepare an intake that reads each delivery with `screen`, and calls `start` with each task that has a slot.

        `returns` is awaited with the tasks that go back unstarted, before they go back. `unsettled` holds the started
        tasks that are not settled yet.
        """
        self._broker, self._slots, self._background = broker, slots, background
        self._screen, self._start, self._returns = screen, start, returns
        self._unsettled = unsettled
        self._loop = asyncio.get_running_loop()
        self._consumers: dict[str, QueueConsumer] = {}
        self._lively: dict[QueueConsumer, None] = {}
        """The queues that each periodic check visits; of `_others` a check visits some, until none is unvisited."""
        self._others: deque[QueueConsumer] = deque()
        self._unvisited = self._parked = 0
        self._candidates: dict[Priority, dict[QueueConsumer, None]] = {level: {} for level in Priority}
        self._resuming: dict[Priority, deque[asyncio.Future[None]]] = {level: deque() for level in Priority}
        self._lines = (*self._candidates.values(), *self._resuming.values())
        """All queues and tasks that wait for a slot; a task that arrives while there are none may start at once."""
        self._closed: dict[QueueConsumer, None] = {}
        self._suspended: Counter[int] = Counter()
        self._next_look: asyncio.TimerHandle | None = None
        self._lag = 0.0
        self.waiting = 0
        """The number of deliveries that this agent holds and that wait for a slot."""
        self.closed = False

    @property
    def suspended(self) -> int:
        """The number of deliveries held without a slot: their tasks await other tasks, or `park` added them."""
        return self._suspended.total() + self._parked

    async def open(self, consumer: QueueConsumer) -> None:
        """Start to consume a queue; raises NotFound without the queue, and BrokerUnavailable without the broker."""
        self._consumers[consumer.queue] = consumer
        self._others.append(consumer)
        await self._widen(consumer, max(1, self._slots.startable(consumer.level)))
        consumer.changing = False
        self._watch()

    def is_free(self, queue: str) -> bool:
        """Tell whether this agent would start another task of a queue at once, at priority P1."""
        consumer = None if self.closed else self._consumers.get(queue)
        return bool(consumer and not any(self._lines) and consumer.unused and self._slots.startable(Priority.P1) > 0)

    def _arrived(self, consumer: QueueConsumer, delivery: Delivery) -> None:
        if self.closed:
            consumer.give_back(delivery)
            return
        if (execution := self._screen(delivery, consumer)) is None:
            return
        self._lively[consumer] = None
        if consumer.reserved:
            consumer.reserved -= 1
            self._go(consumer, execution)
        elif not consumer.paused and not any(self._lines) and self._slots.take_at_once(consumer.level):
            self._go(consumer, execution)
        else:
            consumer.waiting.append(execution)
            self.waiting += 1
            self._reconsider(consumer)

    def _go(self, consumer: QueueConsumer, execution: Execution) -> None:
        consumer.hold(execution)
        consumer.open += 1
        self._start(execution)
        self._watch()

    def _admit(self) -> None:
        """Give free slots to priority levels by weight; in a level first to resuming tasks, then to queues in turn."""
        asked: dict[QueueConsumer, None] = {}
        waiting = dict.fromkeys(Priority, ()) if self.closed else self._candidates
        while (
            level := self._slots.choose([one for one in Priority if waiting[one] or self._resuming[one]])
        ) is not None:
            self._slots.take(level)
            turns = self._resuming[level]
            if turns and (turn := turns.popleft()) and not turn.done():
                turn.set_result(None)
            elif turns or not self._serve(level, asked):
                self._slots.give_back(level)
        for consumer in asked:
            consumer.changing = True
            self._background.start(self._ask(consumer), name=f"ask {consumer.queue}")

    def _serve(self, level: Priority, asked: dict[QueueConsumer, None]) -> bool:
        """Start a waiting task of a level, or reserve the slot for a later fetch; tell whether the slot is used."""
        candidates = self._candidates[level]
        if self.closed or not candidates:
            return False
        consumer = next(iter(candidates))
        del candidates[consumer]
        before, execution = len(consumer.waiting), consumer.next_waiting()
        self.waiting -= before - len(consumer.waiting)
        taken = execution is not None or consumer.wants_a_slot
        if execution is not None:
            self._go(consumer, execution)
        elif taken:
            consumer.reserved += 1
            asked[consumer] = None
        if consumer.wants_a_slot:
            candidates[consumer] = None  # behind the others: queues of one level take turns
        return taken

    async def _ask(self, consumer: QueueConsumer) -> None:
        """Fetch and start a queue's tasks on the slots reserved for it; free the slots for which there is no task."""
        try:
            if consumer.reserved >= MANY:
                consumer.hungry = False
                await self._widen(consumer, consumer.reserved)
                await asyncio.sleep(FETCH_SECONDS)
            while consumer.reserved and (delivery := await self._get(consumer)) is not None:
                consumer.hungry = not consumer.consumers
                self._arrived(consumer, delivery)
            if consumer.reserved:
                consumer.hungry, consumer.empty_at = False, self._loop.time()
        except CoditectError as error:
            log.warning("A queue cannot be asked yet", extra={"queue": consumer.queue, "reason": str(error)})
            consumer.hungry = False
            self._loop.call_later(RETRY_SECONDS, self._doubt, consumer)
        finally:
            consumer.changing = False
            self._release(consumer)

    async def _get(self, consumer: QueueConsumer) -> Delivery | None:
        """Fetch a queue's next message, if any; free the queue's reserved slots if no answer comes in 0.5 s."""
        silent = self._loop.call_later(RETRY_SECONDS, self._release, consumer)
        try:
            return await self._broker.get(consumer.queue)
        finally:
            silent.cancel()

    def _release(self, consumer: QueueConsumer) -> None:
        for _ in range(consumer.reserved):
            self._slots.give_back(consumer.level)
        consumer.reserved = 0
        self._reconsider(consumer)

    def _doubt(self, consumer: QueueConsumer) -> None:
        """Note that a queue may hold tasks that no consumer delivers, so that the next free slot fetches one."""
        consumer.hungry = True
        self._reconsider(consumer)

    def _reconsider(self, consumer: QueueConsumer) -> None:
        """Decide again, after a queue's state has changed, whether it may get free slots; then give out free slots."""
        if consumer.paused and not consumer.changing:
            self._shut(consumer)
        self._lively[consumer] = None
        if consumer.wants_a_slot:
            self._candidates[consumer.level][consumer] = None
        else:
            self._candidates[consumer.level].pop(consumer, None)
        self._admit()
        self._watch()

    def began(self, execution: Execution, now: float) -> None:
        """Record that the attempt of a task began at `now`, in seconds of the event loop's clock."""
        self._consumers[execution.queue].began(execution, now)

    def finished(self, execution: Execution, ran_seconds: float | None) -> None:
        """Free the slot, if any, of a task that runs here no more; its delivery may still have to be settled."""
        if execution.awaiting:
            self._suspended[execution.task.depth] -= 1
        consumer = self._consumers[execution.queue]
        if consumer.ended(execution, ran_seconds):
            self._free(consumer.level)

    def _free(self, level: Priority) -> None:
        self._slots.give_back(level)
        if self._closed:
            self._doubt_closed()
        if any(self._lines):
            self._admit()
        self._watch()

    def _doubt_closed(self) -> None:
        """Let free slots fetch tasks from the queues without consumers, except where a fetch is useless just now."""
        since = self._loop.time() - FETCH_SECONDS
        for consumer in self._closed:
            is_asked = consumer.paused or consumer.hungry or consumer.changing or consumer.empty_at > since
            if not is_asked and self._has_room(consumer.level):
                consumer.hungry = True
                self._candidates[consumer.level][consumer] = None

    def _has_room(self, level: Priority) -> bool:
        """Tell whether a task of a priority level could start, and not too many tasks are unsettled already."""
        unsettled = len(self._unsettled) - self.suspended
        return self._slots.startable(level) > 0 and unsettled < most_in_hand(self._slots.total)

    def may_suspend(self, execution: Execution, most: int) -> bool:
        """Tell whether a task may wait without its slot, which only a bounded number of tasks may do.

        A task that waits so already may. The bound `most` counts at each depth of nested requests by itself: an awaited
        task can then always await others in its turn, and the deepest tasks, which await none, always end.
        """
        return execution.awaiting > 0 or self._suspended[execution.task.depth] < most

    def suspend(self, execution: Execution) -> None:
        """Free the slot of a task while it awaits another task; `resume` or `abandon` must follow."""
        execution.awaiting += 1
        if execution.awaiting == 1 and not execution.over:
            self._suspended[execution.task.depth] += 1
            consumer = self._consumers[execution.queue]
            if consumer.stopped(execution):
                self._free(consumer.level)

    async def resume(self, execution: Execution, *, bound: bool = True) -> bool:
        """End one await of a suspended task; after the last, wait for a slot, ahead of the new tasks of its level.

        A task that still awaits others goes on without a slot: with a slot it could keep them from theirs. For a task
        that is not `bound` to this agent, return False when no slot gets free within a second although the task's queue
        is empty: then other agents may have one.
        """
        consumer, taken = self._consumers[execution.queue], False
        try:
            if execution.awaiting == 1 and not execution.over:
                taken = await self._next_slot(consumer.level, None if bound else consumer.queue)
                if not taken:
                    return False
        finally:
            self.abandon(execution)
        if taken and (execution.awaiting or execution.over):
            self._free(consumer.level)
        elif taken:
            consumer.hold(execution)
            consumer.began(execution, self._loop.time())
        return True

    async def _next_slot(self, level: Priority, queue: str | None = None) -> bool:
        """Wait for a slot, and return True; False when there is none within a second, and the `queue` is empty."""
        self._resuming[level].append(turn := self._loop.create_future())
        self._admit()
        pause = SLOT_SECONDS
        try:
            while queue and not (await asyncio.wait({turn}, timeout=pause))[0]:
                if not await self._has_backlog(queue) and turn.cancel():
                    return False
                pause = min(2 * pause, MOST_SLOT_SECONDS)
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and not turn.cancel():  # the slot was given at the same moment
                self._free(level)
            raise
        return True

    async def _has_backlog(self, queue: str) -> bool:
        try:
            stats = await self._broker.stats(queue)
        except CoditectError:
            return True
        return stats is None or stats.messages > 0

    def abandon(self, execution: Execution) -> None:
        """End one await of a suspended task whose result is not used: the await was canceled, or the handler ended."""
        execution.awaiting -= 1
        if execution.awaiting == 0 and not execution.over:
            self._suspended[execution.task.depth] -= 1

    def park(self, many: int) -> None:
        """Add `many` to the count of deliveries held without a slot; the bound on deliveries leaves these out."""
        self._parked += many
        self._watch()

    def _watch(self) -> None:
        """Schedule a check, repeated while needed, of how many deliveries the broker may send from each queue."""
        self._unvisited = len(self._others)
        if self._next_look is None and not self.closed:
            self._next_look = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        look, self._next_look, now = self._next_look, None, self._loop.time()
        if self.closed or look is None:
            return
        self._lag = lag = max(now - look.when(), 0.8 * self._lag)
        some = min(MOST_AT_EACH_LOOK, len(self._others))
        self._unvisited -= some
        self._others.rotate(-some)
        consumers = dict.fromkeys([*filter(QueueConsumer.is_lively, self._lively), *islice(self._others, some)])
        self._lively = consumers
        soon = sum(consumer.slots for consumer in consumers if consumer.slots and consumer.is_quick(now, lag))
        rivals = sum(consumer.hungry or bool(consumer.consumers and not consumer.unused) for consumer in consumers) > 1
        changes = False
        for consumer in [one for one in consumers if not (one.changing or one.paused)]:
            returns = not soon and bool(consumer.returnable(now - 2 * lag))
            if returns or not self._fits(consumer, now, soon, rivals=rivals):
                changes = consumer.changing = True
                self._background.start(self._fit(consumer, returns=returns), name=f"fit {consumer.queue}")
        if self.waiting or soon or changes or any(consumer.misfit_since for consumer in consumers):
            self._watch()
        elif self._unvisited > 0:
            self._next_look = self._loop.call_later(LOOK_SECONDS, self._look)

    def _fits(self, consumer: QueueConsumer, now: float, soon: int, *, rivals: bool) -> bool:
        """Tell whether a queue's prefetch may stay as it is, or must change to suit the tasks that could start.

        It sets `consumer.missing`, the change that is due. When several queues hold more than could start (`rivals`),
        none gets deliveries unasked: all are asked in turn.
        """
        free = self._slots.startable(consumer.level) + soon
        if consumer.hungry:
            return True
        if rivals and consumer.consumers and not (free or consumer.unused):
            consumer.hungry, consumer.missing = True, 0
            return False
        can_close = not consumer.own and len(self._closed) < MOST_CLOSED
        most = consumer.most_in_hand(self._slots.total) + self._parked
        if (free or can_close) and consumer.misfits(free, most, now, self._lag):
            if consumer.unused or consumer.is_quick(now, self._lag) or now - consumer.empty_at < EMPTY_SECONDS:
                return False
            if self._has_room(consumer.level):
                self._doubt(consumer)
        return True

    async def _fit(self, consumer: QueueConsumer, *, returns: bool) -> None:
        """Give a queue more prefetch by another consumer, or less by a smaller one in place of all.

        With `returns`, the tasks that wait too long go back instead; unless they go to other agents, the consumers are
        closed first, which would bring them again.
        """
        try:
            left = consumer.unused + consumer.missing
            if consumer.missing > 0 and not returns:
                await self._widen(consumer, consumer.missing)
            elif not (returns and consumer.passes_on):
                self._closed[consumer] = None
                await consumer.close_consumers()
                consumer.hungry = consumer.hungry or returns
                if left > 0 and not returns:
                    await self._widen(consumer, left)
            if returns:
                await self._give_back_all(consumer, consumer.returnable())
        except CoditectError as error:
            log.warning("A queue cannot be consumed again yet", extra={"queue": consumer.queue, "reason": str(error)})
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            consumer.changing = False
            self._reconsider(consumer)

    async def _give_back_all(self, consumer: QueueConsumer, waiting: Iterable[Execution]) -> None:
        unstarted = tuple(waiting)
        for execution in unstarted:
            consumer.waiting.remove(execution)
        self.waiting -= len(unstarted)
        await self._returns(execution.task for execution in unstarted)
        for execution in unstarted:
            consumer.give_back(execution.delivery)

    async def _widen(self, consumer: QueueConsumer, many: int) -> None:
        await consumer.widen(self._broker, partial(self._arrived, consumer), many)
        if self.closed:
            await consumer.close_consumers()
        self._closed.pop(consumer, None)

    async def close(self) -> None:
        """Close all consumers, and return the deliveries that have not started to their queues."""
        self.closed = True
        if self._next_look is not None:
            self._next_look.cancel()
        for consumer in self._others:
            await consumer.close_consumers()
            await self._give_back_all(consumer, consumer.waiting)
