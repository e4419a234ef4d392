"""An agent's consumption of one queue: its consumers, its unsettled deliveries, and the run times of its tasks.

The credit of a queue is the sum of its consumers' prefetch. Since a consumer's prefetch cannot change, more credit is
another consumer, and less credit is a canceled one. The deliveries of a canceled consumer stay in hand, and no longer
count against the credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from math import inf

from coditect.agent.execution.execution import Execution
from coditect.agent.intake.slots import most_in_hand
from coditect.broker.port import Broker, Consumer, Delivery, OnDelivery
from coditect.model.capability import Priority

MOST_HAND_BACKS = 3
"""The number of times that a task goes back for an idle peer; after that an agent keeps it for its next slot."""
HAND_BACK_SECONDS = 0.01
"""How long a task waits for a slot before it goes back to its queue for another agent, doubled after each return."""
QUICK_SECONDS = 0.12
"""The run time below which tasks are quick: a quick queue may deliver a task before its slot is free."""
FETCH_SECONDS = 0.05
"""The time in which an acknowledgement brings another task, even where a hundred tasks end at once."""
UNKNOWN_SECONDS = 1.0
"""The assumed run time of a queue's tasks before the first run."""
FORGETTING = 0.9
"""The factor by which the longest run time shrinks with each later run: 30 minutes are forgotten after a hundred."""
PATIENCE_SECONDS = 0.02
"""The time for which credit must differ from what could start before the credit is changed."""
MOST_CONSUMERS = 8
STARVING_SECONDS = 0.01
"""The time for which the credit of a queue without unused credit must differ before it is changed."""
ACK_SECONDS = 0.05
"""The time added to the patience while an acknowledgement is due that brings another delivery."""


class PauseReason(Enum):
    """The reason why an agent takes nothing from a queue for now: an open breaker or a used-up rate; both may apply."""

    BREAKER = auto()
    RATE = auto()


Screen = Callable[[Delivery, "QueueConsumer"], Execution | None]
"""The function that returns the execution of a queue's delivery; None for a delivery that needs no slot."""


class QueueConsumer:
    """The consumers of one queue, and its deliveries that wait for a slot."""

    def __init__(self, queue: str, level: Priority, *, group: str, own: bool = False, passes_on: bool = False) -> None:
        """Prepare to consume a queue, whose tasks take slots of the priority level `level`.

        With `own`, no other agent consumes the queue; with `passes_on`, returned tasks go to other agents.
        """
        self.queue = queue
        self.level = level
        self.group = group
        self.own = own
        self.passes_on = passes_on
        self.waiting: deque[Execution] = deque()
        self.consumers: list[Consumer] = []
        self.hungry = False
        """Whether the queue may hold tasks that no consumer brings; a free slot then fetches one."""
        self.paused: set[PauseReason] = set()
        """The reasons why the queue's tasks wait where they are; empty while the agent takes them."""
        self.changing = True
        """Whether a fetch is under way, or a consumer is being opened (as at first) or closed."""
        self.empty_at = -inf
        """The event loop's time at which a fetch last found the queue empty."""
        self.missing = 0
        """The credit that the queue lacks since `misfit_since`; negative when the queue has too much."""
        self.misfit_since: float | None = None
        self.reserved = 0
        """The number of slots reserved for tasks that are being fetched from the queue."""
        self.slots = 0
        """The number of slots that the queue's tasks hold."""
        self._running: dict[Execution, float] = {}
        """The tasks whose attempt runs on a slot, the oldest first, each with the event loop's time of its beginning.

        A task whose owner is still asked holds a slot too; how long the owner takes says nothing of the queue's tasks.
        """
        self.open = 0
        """The number of tasks that were started and have not ended; some may wait without a slot."""
        self._longest_seconds = UNKNOWN_SECONDS

    # -- how long its tasks take ------------------------------------------------------------------------

    def began(self, execution: Execution, now: float) -> None:
        """Record that a task's attempt begins, or goes on after an await of other tasks."""
        self._running[execution] = now

    def hold(self, execution: Execution) -> None:
        """Record that a task has a slot from now on."""
        execution.slot = True
        self.slots += 1

    def stopped(self, execution: Execution) -> bool:
        """Record that a task stops running, for now or for good, and has no slot; return whether it had one."""
        self._running.pop(execution, None)
        held, execution.slot = execution.slot, False
        self.slots -= held
        return held

    def ended(self, execution: Execution, ran_seconds: float | None) -> bool:
        """Record the end of a task, and its run time if it ran; return whether the task held a slot."""
        execution.over = True
        self.open -= 1
        if ran_seconds is not None:
            self._longest_seconds = max(ran_seconds, FORGETTING * self._longest_seconds)
        return self.stopped(execution)

    def is_quick(self, now: float, lag: float = 0.0) -> bool:
        """Tell whether the queue's tasks are quick, by the longest recent run and the oldest run under way.

        `lag` is the event loop's delay in seconds, by which all runs and round trips are longer.
        """
        bound = QUICK_SECONDS + 4 * lag
        oldest = next(iter(self._running.values()), now)
        return self._longest_seconds < bound and now - oldest < bound

    # -- credit -----------------------------------------------------------------------------------------

    def most_in_hand(self, slots: int) -> int:
        """Return how many tasks of a quick queue the agent may hold: one per slot, plus what ends during a fetch.

        The bound `slots.most_in_hand` limits the number.
        """
        ending = slots * FETCH_SECONDS / max(self._longest_seconds, 0.001)
        return min(most_in_hand(slots), slots + int(ending))

    @property
    def unused(self) -> int:
        """The unused prefetch: how many deliveries the broker may still send to the queue's consumers."""
        return sum(max(0, consumer.prefetch - consumer.unsettled) for consumer in self.consumers)

    def is_lively(self) -> bool:
        """Tell whether to check an unpaused queue's prefetch often: tasks have or want slots, or it is used up."""
        return not self.paused and bool(self.slots or self.waiting or not self.unused)

    @property
    def wants_a_slot(self) -> bool:
        """True when the queue can use a free slot: a task waits in this agent, or perhaps in the queue."""
        return not self.paused and (bool(self.waiting) or (self.hungry and not self.changing))

    def misfits(self, free: int, most: int, now: float, lag: float) -> bool:
        """Tell whether the unused prefetch has been too large or too small for a while, for the tasks that could start.

        That is, mostly, over twice or under half of them.

        The method sets `missing`. Quick tasks may arrive before their slots are free, up to `most`. When a task has
        ended, its acknowledgement is probably on the way and brings another delivery; the patience with it is limited,
        as the acknowledgement may wait for the task's owner. Tasks that await others use credit up and start nothing.
        """
        unused, credit, coming = self.unused, sum(consumer.prefetch for consumer in self.consumers), False
        if free and credit and self.is_quick(now, lag):
            self.missing = most + self.open - self.slots - credit
            fits = unused > 0 or self.missing <= 0
        else:
            self.missing = free - unused
            coming = sum(consumer.unsettled for consumer in self.consumers) > self.open + len(self.waiting)
            fits = unused <= 2 * free and free <= 2 * unused
        since = self.misfit_since or now
        patience = (PATIENCE_SECONDS if unused else STARVING_SECONDS) + coming * ACK_SECONDS + 2 * lag
        over = not fits and now - since >= patience
        self.misfit_since = None if fits or over else since
        return over

    async def widen(self, broker: Broker, arrived: OnDelivery, many: int) -> None:
        """Open another consumer of the queue with a prefetch of `many`; if eight are open, close these first.

        Raises:
            NotFound: when there is no such queue.
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        if len(self.consumers) >= MOST_CONSUMERS:
            await self.close_consumers()
        self.consumers.append(await broker.consume(self.queue, arrived, prefetch=many, group=self.group))

    async def close_consumers(self) -> None:
        """Cancel all consumers of the queue; the agent keeps their deliveries, which no longer use up any prefetch."""
        consumers, self.consumers = self.consumers, []
        for consumer in consumers:
            await consumer.cancel()

    # -- what waits -------------------------------------------------------------------------------------

    def next_waiting(self) -> Execution | None:
        """Remove and return the oldest waiting task whose delivery is not lost; None without any."""
        while self.waiting:
            execution = self.waiting.popleft()
            if not execution.delivery.lost:
                return execution
        return None

    def give_back(self, delivery: Delivery) -> None:
        """Return an unstarted delivery to the broker, for any agent that can take it."""
        if self.passes_on:
            delivery.reject()
        else:
            delivery.requeue()

    def returnable(self, overdue: float = inf) -> list[Execution]:
        """Return the waiting tasks that should go back to their queue, because they waited too long for a slot.

        Their time was over by the instant `overdue`. A task that went back three times (`MOST_HAND_BACKS`), by the
        broker's delivery count, stays.
        """
        return [
            one
            for one in self.waiting
            if (times := one.delivery.delivery_count) < MOST_HAND_BACKS
            and one.since + HAND_BACK_SECONDS * 2**times <= overdue
        ]
