"""One queue as an agent consumes it: its lanes (consumers), what is in hand, and how long its tasks take.

A lane is a consumer with a fixed prefetch. More credit is another lane, less is a canceled one: a consumer's
prefetch cannot change, and what a canceled one delivered stays ours without counting any more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

from coditect.agent.intake.slots import most_in_hand
from coditect.broker.port import Broker, Consumer, Delivery, OnDelivery
from coditect.model.capability import Priority
from coditect.model.task import Task

MOST_HAND_BACKS = 3
"""So often a task goes back for an idle peer; the agent that has it then keeps it for its next slot."""
HAND_BACK_SECONDS = 0.01
"""After so long without a slot the first time, each time twice as long: full peers close their lanes meanwhile."""
QUICK_SECONDS = 0.12
"""A task that waits for a run below it waits for a moment: it may be asked for before its slot is free."""
FETCH_SECONDS = 0.05
"""Within it an acknowledgement brings another task, also where a hundred tasks end at once."""
UNKNOWN_SECONDS = 1.0
"""What a run is taken for before there was one."""
FORGETTING = 0.9
"""By how much less the longest run counts with each that follows: 30 minutes are forgotten after a hundred."""
PATIENCE_SECONDS = 0.02
"""Credit that does not fit for so long is made to fit."""
MOST_LANES = 8
STARVING_SECONDS = 0.01
"""The same where there is none."""
ACK_SECONDS = 0.05
"""How much longer where an acknowledgement is due that brings some."""


@dataclass(eq=False, slots=True)
class ReceivedTask:
    """A task in hand. It waits, then holds a slot, may be suspended, and is settled once."""

    delivery: Delivery
    task: Task
    consumer: QueueConsumer
    since: float
    """Loop time of its arrival."""
    slot: bool = False
    awaiting: int = 0
    """How many others it awaits right now; it has no slot while it is not 0."""
    over: bool = False
    """Its handler ended."""


class QueueConsumer:
    """The lanes of one queue and the deliveries that wait for a slot."""

    def __init__(self, queue: str, level: Priority, *, group: str, own: bool = False, passes_on: bool = False) -> None:
        """`own`: no other agent consumes it; `passes_on`: what it gives back is for others, by its dead letters."""
        self.queue = queue
        self.level = level
        self.group = group
        self.own = own
        self.passes_on = passes_on
        self.waiting: deque[ReceivedTask] = deque()
        self.lanes: list[Consumer] = []
        self.hungry = False
        """Its queue holds more, or may, and nothing comes by itself: it is asked when a slot is free."""
        self.changing = False
        """It is being asked, or a lane opened or closed."""
        self.empty_at = -inf
        """When it was last asked and found empty."""
        self.missing = 0
        """How much credit it lacks, `misfit_since` then; below 0, how much it has too much."""
        self.misfit_since: float | None = None
        self.reserved = 0
        """Slots taken for what its queue is being asked for."""
        self.slots = 0
        """Slots that its tasks have."""
        self.open = 0
        """How many of its tasks were started and have not ended; some may wait without a slot."""
        self._running: dict[ReceivedTask, float] = {}
        self._longest_seconds = UNKNOWN_SECONDS

    # -- how long its tasks take ------------------------------------------------------------------------

    def began(self, received: ReceivedTask, now: float) -> None:
        """The handler of one of its tasks begins, or goes on."""
        self._running[received] = now

    def took_slot(self, received: ReceivedTask) -> None:
        """It may begin, or go on."""
        received.slot = True
        self.slots += 1

    def stopped(self, received: ReceivedTask) -> None:
        """It gave its slot back."""
        self.slots -= 1
        self._running.pop(received, None)

    def ran(self, seconds: float) -> None:
        """One run took so long."""
        self._longest_seconds = max(seconds, FORGETTING * self._longest_seconds)

    def is_quick(self, now: float, lag: float = 0.0) -> bool:
        """Whether its tasks are known to be short: the longest of the recent runs, and whatever runs now.

        `lag` is how late the event loop is: all runs, and all round trips, are as much longer.
        """
        bound = QUICK_SECONDS + 4 * lag
        oldest = next(iter(self._running.values()), now)
        return self._longest_seconds < bound and now - oldest < bound

    # -- credit -----------------------------------------------------------------------------------------

    def most_in_hand(self, slots: int) -> int:
        """How many of its quick tasks may be in hand: as many as run, and as end while another is fetched."""
        ending = slots * FETCH_SECONDS / max(self._longest_seconds, 0.001)
        return min(most_in_hand(slots), slots + int(ending))

    @property
    def unused(self) -> int:
        """How many deliveries may still come by themselves."""
        return sum(max(0, lane.prefetch - lane.unsettled) for lane in self.lanes)

    def is_lively(self) -> bool:
        """Whether something of it runs or waits, or it has no credit."""
        return bool(self.slots or self.waiting or not self.unused)

    @property
    def wants_a_slot(self) -> bool:
        """Whether it has something to start, in hand or perhaps in its queue."""
        return bool(self.waiting) or (self.hungry and not self.changing)

    def misfits(self, free: int, most: int, now: float, lag: float) -> bool:
        """Whether for a while it may have received more, or less, than what could start, by a factor of two.

        Quick tasks may be in hand before their slots are free, up to `most`. Where something has ended, its
        acknowledgement is probably on the way and brings another delivery; not for ever: it may wait for its owner.
        Tasks that await others use credit up and start nothing.
        """
        unused, credit, coming = self.unused, sum(lane.prefetch for lane in self.lanes), False
        if free and credit and self.is_quick(now, lag):
            self.missing = most + self.open - self.slots - credit
            fits = unused > 0 or self.missing <= 0
        else:
            self.missing = free - unused
            coming = sum(lane.unsettled for lane in self.lanes) > self.open + len(self.waiting)
            fits = unused <= 2 * free and free <= 2 * unused
        since = self.misfit_since or now
        patience = (PATIENCE_SECONDS if unused else STARVING_SECONDS) + coming * ACK_SECONDS + 2 * lag
        over = not fits and now - since >= patience
        self.misfit_since = None if fits or over else since
        return over

    async def widen(self, broker: Broker, arrived: OnDelivery, many: int) -> None:
        """Opens another lane; where there are many already, in their place. Raises: NotFound, BrokerUnavailable."""
        if len(self.lanes) >= MOST_LANES:
            await self.close_lanes()
        self.lanes.append(await broker.consume(self.queue, arrived, prefetch=many, group=self.group))

    async def close_lanes(self) -> None:
        """What they delivered stays in hand and does not count any more."""
        lanes, self.lanes = self.lanes, []
        for lane in lanes:
            await lane.cancel()

    # -- what waits -------------------------------------------------------------------------------------

    def next_waiting(self) -> ReceivedTask | None:
        """The oldest delivery that waits and is still ours."""
        while self.waiting:
            received = self.waiting.popleft()
            if not received.delivery.lost:
                return received
        return None

    def give_back(self, delivery: Delivery) -> None:
        """It was not begun: whoever can takes it."""
        if self.passes_on:
            delivery.reject()
        else:
            delivery.requeue()

    def returnable(self, overdue: float = inf) -> list[ReceivedTask]:
        """What may go back, and could not start until then: the broker counts how often it did."""
        return [
            one
            for one in self.waiting
            if (times := one.delivery.delivery_count) < MOST_HAND_BACKS
            and one.since + HAND_BACK_SECONDS * 2**times <= overdue
        ]
