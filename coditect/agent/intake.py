"""The consumption of an agent's queues: how many deliveries the agent holds, and which task starts next.

An agent holds no task that it cannot start. Each queue has credit for what its priority level could start: free slots,
and the slots of tasks that are known to be quick. When a level can start nothing more, its consumers with unused credit
are closed; a slot that gets free then has the queues asked one by one, in the levels' turns. A task that arrives all
the same goes back for an idle peer, at most three times in its life. See `docs/adr/0004`.

The credit of a queue is the sum of its consumers' prefetch. Since a consumer's prefetch cannot change, more credit is
another consumer, and less credit is a canceled one. The deliveries of a canceled consumer stay in hand, and no longer
count against the credit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence, Sized
from enum import Enum, auto
from functools import partial
from itertools import islice
from math import inf

from coditect.agent.execution import Execution
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Consumer, Delivery, OnDelivery
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.task import Task
from coditect.wire import routing

log = logging.getLogger(__name__)

CREDIT_CHECK_SECONDS = 0.01
QUEUE_FETCH_SECONDS = 0.025
"""The time that a new consumer has to get messages, and the pause between fetches from an empty queue."""
MANY = 4
"""The number of free slots from which a new consumer is cheaper than a `basic.get` for each slot."""
EMPTY_SECONDS = 0.1
"""The time after a queue was found empty in which it gets a consumer rather than another `basic.get`."""
SLOT_SECONDS = 1.0
"""How long a task that may begin elsewhere waits for a slot before the agent looks whether others are busy as well."""
MOST_SLOT_SECONDS = 16.0
"""The longest pause between two such looks, each of which is a call to the broker."""
GET_RETRY_SECONDS = 0.5
"""The pause after a failed request about a queue; a queue silent for so long loses its reserved slots."""
MOST_AT_EACH_LOOK = 32
MOST_CLOSED = 64
"""The most queues without a consumer for want of slots: as many as can be consumed again in a moment."""


class Intake:
    """The intake of one agent process: the consumers of all its queues, and its slots."""

    screen: Screen
    """The function that reads each delivery, to be set before the first `open`: its parts work with the intake."""

    def __init__(
        self,
        broker: Broker,
        slots: Slots,
        background: Supervisor,
        unsettled: Sized,
        *,
        start: Callable[[Execution], None],
        returns: Callable[[Iterable[Task]], Awaitable[None]],
        max_suspended: int,
    ) -> None:
        """Prepare an intake that calls `start` with each task that has a slot.

        `returns` is awaited with the tasks that go back unstarted, before they go back. `unsettled` holds the started
        tasks that are not settled yet. At each depth of nested requests, `max_suspended` tasks may wait without a slot.
        """
        self._broker, self._slots, self._background = broker, slots, background
        self._start, self._returns, self._unsettled = start, returns, unsettled
        self.max_suspended = max_suspended
        self._loop = asyncio.get_running_loop()
        self._credits: dict[str, QueueCredit] = {}
        self._needing_check: dict[QueueCredit, None] = {}
        """The queues that each periodic check visits; of `_others` a check visits some, until none is unvisited."""
        self._others: deque[QueueCredit] = deque()
        self._unvisited = self._parked = 0
        self._candidates: dict[Priority, dict[QueueCredit, None]] = {level: {} for level in Priority}
        self._resuming: dict[Priority, deque[asyncio.Future[None]]] = {level: deque() for level in Priority}
        self._lines = (*self._candidates.values(), *self._resuming.values())
        """All queues and tasks that wait for a slot; a task that arrives while there are none may start at once."""
        self._closed: dict[QueueCredit, None] = {}
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

    async def open(self, credit: QueueCredit) -> None:
        """Start to consume a queue; raises NotFound without the queue, and BrokerUnavailable without the broker."""
        self._credits[credit.queue] = credit
        self._others.append(credit)
        await self._widen(credit, max(1, self._slots.startable(credit.level)))
        credit.changing = False
        self._watch()

    def is_free(self, queue: str) -> bool:
        """Tell whether this agent would start another task of a queue at once, at priority P1."""
        credit = None if self.closed else self._credits.get(queue)
        return bool(credit and not any(self._lines) and credit.unused and self._slots.startable(Priority.P1) > 0)

    def _arrived(self, credit: QueueCredit, delivery: Delivery) -> None:
        if self.closed:
            credit.give_back_late(delivery)
            return
        if (execution := self.screen(delivery, credit)) is None:
            return
        self._needing_check[credit] = None
        if credit.reserved:
            credit.reserved -= 1
            self._go(credit, execution)
        elif not credit.paused and not any(self._lines) and self._slots.take_at_once(credit.level):
            self._go(credit, execution)
        else:
            credit.waiting.append(execution)
            self.waiting += 1
            self._reconsider(credit)

    def _go(self, credit: QueueCredit, execution: Execution) -> None:
        execution.slot = True
        credit.slots += 1
        credit.open += 1
        self._start(execution)
        self._watch()

    def _admit(self) -> None:
        """Give free slots to priority levels by weight; in a level first to resuming tasks, then to queues in turn."""
        asked: dict[QueueCredit, None] = {}
        waiting = dict.fromkeys(Priority, ()) if self.closed else self._candidates
        while (
            level := self._slots.choose([level for level in Priority if waiting[level] or self._resuming[level]])
        ) is not None:
            self._slots.take(level)
            turns = self._resuming[level]
            if turns and (turn := turns.popleft()) and not turn.done():
                turn.set_result(None)
            elif turns or not self._serve(level, asked):
                self._slots.give_back(level)
        for credit in asked:
            credit.changing = True
            self._background.start(self._ask(credit), name=f"ask {credit.queue}")

    def _serve(self, level: Priority, asked: dict[QueueCredit, None]) -> bool:
        """Start a waiting task of a level, or reserve the slot for a later fetch; tell whether the slot is used."""
        candidates = self._candidates[level]
        if self.closed or not candidates:
            return False
        credit = next(iter(candidates))
        del candidates[credit]
        before, execution = len(credit.waiting), credit.next_waiting()
        self.waiting -= before - len(credit.waiting)
        taken = execution is not None or credit.wants_a_slot
        if execution is not None:
            self._go(credit, execution)
        elif taken:
            credit.reserved += 1
            asked[credit] = None
        if credit.wants_a_slot:
            candidates[credit] = None  # behind the others: queues of one level take turns
        return taken

    async def _ask(self, credit: QueueCredit) -> None:
        """Fetch and start a queue's tasks on the slots reserved for it; free the slots for which there is no task."""
        try:
            if credit.reserved >= MANY:
                credit.may_hold_more = False
                await self._widen(credit, credit.reserved)
                await asyncio.sleep(QUEUE_FETCH_SECONDS)
            while credit.reserved and not self.closed and (delivery := await self._get(credit)) is not None:
                credit.may_hold_more = not credit.consumers
                self._arrived(credit, delivery)
            if credit.reserved:
                credit.may_hold_more, credit.empty_at = False, self._loop.time()
        except CoditectError as error:
            log.warning("A queue cannot be asked yet", extra={"queue": credit.queue, "reason": str(error)})
            credit.may_hold_more = False
            self._loop.call_later(GET_RETRY_SECONDS, self._doubt, credit)
        finally:
            credit.changing = False
            self._release(credit)

    async def _get(self, credit: QueueCredit) -> Delivery | None:
        """Fetch a queue's next message, if any; free the queue's reserved slots if no answer comes in 0.5 s."""
        silent = self._loop.call_later(GET_RETRY_SECONDS, self._release, credit)
        try:
            return await self._broker.get(credit.queue)
        finally:
            silent.cancel()

    def _release(self, credit: QueueCredit) -> None:
        for _ in range(credit.reserved):
            self._slots.give_back(credit.level)
        credit.reserved = 0
        self._reconsider(credit)

    def _doubt(self, credit: QueueCredit) -> None:
        """Note that a queue may hold tasks that no consumer delivers, so that the next free slot fetches one."""
        credit.may_hold_more = True
        self._reconsider(credit)

    def _reconsider(self, credit: QueueCredit) -> None:
        """Decide again, after a queue's state has changed, whether it may get free slots; then give out free slots."""
        if credit.paused and not credit.changing:
            self._shut(credit)
        self._needing_check[credit] = None
        if credit.wants_a_slot:
            self._candidates[credit.level][credit] = None
        else:
            self._candidates[credit.level].pop(credit, None)
        self._admit()
        self._watch()

    def began(self, execution: Execution, now: float) -> None:
        """Record that the attempt of a task began at `now`, in seconds of the event loop's clock."""
        self._credits[execution.queue].running[execution] = now

    def finished(self, execution: Execution, ran_seconds: float | None) -> None:
        """Free the slot, if any, of a task that runs here no more; its delivery may still have to be settled."""
        if execution.awaiting:
            self._suspended[execution.task.depth] -= 1
        credit = self._credits[execution.queue]
        execution.over = True
        credit.open -= 1
        if credit.stopped(execution, ran_seconds):
            self.free(credit.level)

    def free(self, level: Priority) -> None:
        """Give back a slot of a priority level, for the next task that waits."""
        self._slots.give_back(level)
        if self._closed:
            self._doubt_closed()
        if any(self._lines):
            self._admit()
        self._watch()

    def _doubt_closed(self) -> None:
        """Let free slots fetch tasks from the queues without consumers, except where a fetch is useless just now."""
        since = self._loop.time() - QUEUE_FETCH_SECONDS
        for credit in self._closed:
            is_asked = credit.paused or credit.may_hold_more or credit.changing or credit.empty_at > since
            if not is_asked and self._has_room(credit.level):
                credit.may_hold_more = True
                self._candidates[credit.level][credit] = None

    def _has_room(self, level: Priority) -> bool:
        """Tell whether a task of a priority level could start, and not too many tasks are unsettled already."""
        unsettled = len(self._unsettled) - self.suspended
        return self._slots.startable(level) > 0 and unsettled < most_in_hand(self._slots.total)

    def may_suspend(self, execution: Execution) -> bool:
        """Tell whether a task may wait without its slot, which only a bounded number of tasks may do.

        A task that waits so already may. The bound counts at each depth of nested requests by itself: an awaited
        task can then always await others in its turn, and the deepest tasks, which await none, always end.
        """
        return execution.awaiting > 0 or self._suspended[execution.task.depth] < self.max_suspended

    def suspend(self, execution: Execution) -> None:
        """Free the slot of a task while it awaits another task; `resume` or `abandon` must follow."""
        execution.awaiting += 1
        if execution.awaiting == 1 and not execution.over:
            self._suspended[execution.task.depth] += 1
            credit = self._credits[execution.queue]
            if credit.stopped(execution):
                self.free(credit.level)

    async def resume(self, execution: Execution, *, bound: bool = True) -> bool:
        """End one await of a suspended task; after the last, wait for a slot, ahead of the new tasks of its level.

        A task that still awaits others goes on without a slot: with a slot it could keep them from theirs. For a task
        that is not `bound` to this agent, return False when no slot gets free within a second although the queue of the
        task's capability is empty: then other agents may have one.
        """
        credit, taken = self._credits[execution.queue], False
        shared = None if bound else routing.task_queue(execution.task.capability, execution.task.priority)
        try:
            if execution.awaiting == 1 and not execution.over:
                taken = await self.next_slot(credit.level, shared)
                if not taken:
                    return False
        finally:
            self.abandon(execution)
        if taken and (execution.awaiting or execution.over):
            self.free(credit.level)
        elif taken:
            execution.slot = True
            credit.slots += 1
            credit.running[execution] = self._loop.time()
        return True

    async def next_slot(self, level: Priority, queue: str | None = None) -> bool:
        """Wait for a slot, and return True; False when there is none within a second, and the `queue` is empty.

        `fetch_one` may use the slot; `free` must follow if no task does.
        """
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
                self.free(level)
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
        # What a process leaves behind is collected after its loop has ended, and still does what its `finally` says.
        if self._next_look is None and not self.closed and not self._loop.is_closed():
            self._next_look = self._loop.call_later(CREDIT_CHECK_SECONDS, self._look)

    def _look(self) -> None:
        look, self._next_look, now = self._next_look, None, self._loop.time()
        if self.closed or look is None:
            return
        self._lag = lag = max(now - look.when(), 0.8 * self._lag)
        some = min(MOST_AT_EACH_LOOK, len(self._others))
        self._unvisited -= some
        self._others.rotate(-some)
        checked = dict.fromkeys([*filter(QueueCredit.needs_check, self._needing_check), *islice(self._others, some)])
        self._needing_check = checked
        soon = sum(credit.slots for credit in checked if credit.slots and credit.is_quick(now, lag))
        contended = sum(credit.may_hold_more or bool(credit.consumers and not credit.unused) for credit in checked) > 1
        changes = False
        for credit in [credit for credit in checked if not (credit.changing or credit.paused)]:
            returns = not soon and bool(credit.returnable(now - 2 * lag))
            if returns or not self._fits(credit, now, soon, contended=contended):
                changes = credit.changing = True
                fit = partial(self._fit, credit, returns=returns)
                work = self._change(credit, fit, "A queue cannot be consumed again yet")
                self._background.start(work, name=f"fit {credit.queue}")
        if self.waiting or soon or changes or any(credit.wrong_since for credit in checked):
            self._watch()
        elif self._unvisited > 0:
            self._next_look = self._loop.call_later(CREDIT_CHECK_SECONDS, self._look)

    def _fits(self, credit: QueueCredit, now: float, soon: int, *, contended: bool) -> bool:
        """Tell whether a queue's prefetch may stay as it is, or must change to suit the tasks that could start.

        It sets `credit.missing`, the change that is due. When several queues hold more than could start
        (`contended`), none gets deliveries unasked: all are asked in turn.
        """
        free = self._slots.startable(credit.level) + soon
        if credit.may_hold_more:
            return True
        if contended and credit.consumers and not (free or credit.unused):
            credit.may_hold_more, credit.missing = True, 0
            return False
        can_close = not credit.own and len(self._closed) < MOST_CLOSED
        limit = credit.most_in_hand(self._slots.total) + self._parked
        if (free or can_close) and credit.credit_is_wrong(free, limit, now, self._lag):
            if credit.unused or credit.is_quick(now, self._lag) or now - credit.empty_at < EMPTY_SECONDS:
                return False
            if self._has_room(credit.level):
                self._doubt(credit)
        return True

    async def _fit(self, credit: QueueCredit, *, returns: bool) -> None:
        """Give a queue more prefetch by another consumer, or less by a smaller one in place of all.

        With `returns`, the tasks that wait too long go back instead; unless they go to other agents, the consumers are
        closed first, which would bring them again.
        """
        left = credit.unused + credit.missing
        if credit.missing > 0 and not returns:
            await self._widen(credit, credit.missing)
        elif not (returns and credit.passes_on):
            self._closed[credit] = None
            await credit.close_consumers()
            credit.may_hold_more = credit.may_hold_more or returns
            if left > 0 and not returns:
                await self._widen(credit, left)
        if returns:
            await self._give_back_all(credit, credit.returnable())

    async def _change(self, credit: QueueCredit, work: Callable[[], Awaitable[None]], sentence: str) -> None:
        """Await work that changes a queue's consumers; after a failure, log a sentence and pause before the next."""
        try:
            await work()
        except CoditectError as error:
            log.warning(sentence, extra={"queue": credit.queue, "reason": str(error)})
            await asyncio.sleep(GET_RETRY_SECONDS)
        finally:
            credit.changing = False
            self._reconsider(credit)

    async def _give_back_all(self, credit: QueueCredit, waiting: Iterable[Execution]) -> None:
        unstarted = tuple(waiting)
        for execution in unstarted:
            credit.waiting.remove(execution)
        self.waiting -= len(unstarted)
        await self._returns(execution.task for execution in unstarted)
        for execution in unstarted:
            credit.give_back(execution.delivery)

    async def _widen(self, credit: QueueCredit, many: int) -> None:
        await credit.widen(self._broker, partial(self._arrived, credit), many)
        if self.closed:
            await credit.close_consumers()
        self._closed.pop(credit, None)

    async def close(self) -> None:
        """Close all consumers, and return the deliveries that have not started to their queues."""
        self.closed = True
        if self._next_look is not None:
            self._next_look.cancel()
        await asyncio.gather(*map(self._close, self._others))

    async def _close(self, credit: QueueCredit) -> None:
        await credit.close_consumers()
        await self._give_back_all(credit, credit.waiting)

    def pause(self, queue: str, reason: PauseReason) -> None:
        """Take no more tasks of a queue, and return those that have not started; those that run go on."""
        credit = self._credits.get(queue)
        if credit is not None and reason not in credit.paused:
            credit.paused.add(reason)
            self._reconsider(credit)

    def resume_queue(self, queue: str, reason: PauseReason) -> None:
        """Remove one reason of a queue's pause; when no other reason is left, take the queue's tasks again."""
        credit = self._credits.get(queue)
        if credit is not None and reason in credit.paused:
            credit.paused.remove(reason)
            if not credit.paused:
                self._background.start(self._reopen(credit), name=f"resume {queue}")

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

    async def fetch_one(self, queue: str, *, reserved: bool = False) -> bool:
        """Start the next task of a paused queue; return False if the queue is empty or the agent drains.

        The task starts on the caller's `reserved` slot, else on a slot more than there are if none is free.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        credit = self._credits[queue]
        while (delivery := await self._broker.get(queue)) is not None:
            if self.closed:
                credit.give_back(delivery)
                return False
            if (execution := self.screen(delivery, credit)) is not None:
                if not reserved:
                    self._slots.take(credit.level)
                self._go(credit, execution)
                return True
        return False

    def _shut(self, credit: QueueCredit) -> None:
        """Close a paused queue's consumers, if any, and return its waiting tasks, if any, in the background."""
        if credit.consumers or credit.waiting:
            credit.changing = True
            self._closed[credit] = None
            work = self._change(credit, partial(self._close, credit), "A queue cannot be paused yet")
            self._background.start(work, name=f"pause {credit.queue}")

    async def _reopen(self, credit: QueueCredit) -> None:
        """Consume a queue again; a consumer that cannot be opened now is opened by the intake's own checks."""
        credit.may_hold_more = True
        if not credit.changing and not credit.consumers:
            credit.changing = True
            try:
                await self._widen(credit, max(1, self._slots.startable(credit.level)))
                credit.may_hold_more = False
            except CoditectError as error:
                log.warning("A queue cannot be resumed yet", extra={"queue": credit.queue, "reason": str(error)})
            finally:
                credit.changing = False
        self._reconsider(credit)


MAX_HAND_BACKS = 3
"""The number of times that a task goes back for an idle peer; after that an agent keeps it for its next slot."""
HAND_BACK_SECONDS = 0.01
"""How long a task waits for a slot before it goes back to its queue for another agent, doubled after each return."""
QUICK_SECONDS = 0.12
"""The run time below which tasks are quick: a quick queue may deliver a task before its slot is free."""
REFILL_SECONDS = 0.05
"""The time in which an acknowledgement brings another task, even where a hundred tasks end at once."""
UNKNOWN_SECONDS = 1.0
"""The assumed run time of a queue's tasks before the first run."""
FORGETTING = 0.9
"""The factor by which the longest run time shrinks with each later run: 30 minutes are forgotten after a hundred."""
CREDIT_PATIENCE_SECONDS = 0.02
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


Screen = Callable[[Delivery, "QueueCredit"], Execution | None]
"""The function that returns the execution of a queue's delivery; None for a delivery that needs no slot."""


class QueueCredit:
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
        self._closing = 0
        """The number of calls that close consumers now."""
        self._late: list[Delivery] = []
        """The deliveries that arrived after the agent began to drain, and before the consumers were closed."""
        self.may_hold_more = False
        """Whether the queue may hold tasks that no consumer brings; a free slot then fetches one."""
        self.paused: set[PauseReason] = set()
        """The reasons why the queue's tasks wait where they are; empty while the agent takes them."""
        self.changing = True
        """Whether a fetch is under way, or a consumer is being opened (as at first) or closed."""
        self.empty_at = -inf
        """The event loop's time at which a fetch last found the queue empty."""
        self.missing = 0
        """The credit that the queue lacks since `wrong_since`; negative when the queue has too much."""
        self.wrong_since: float | None = None
        self.reserved = 0
        """The number of slots reserved for tasks that are being fetched from the queue."""
        self.slots = 0
        """The number of slots that the queue's tasks hold."""
        self.running: dict[Execution, float] = {}
        """The tasks whose attempt runs on a slot, the oldest first, each with the event loop's time of its beginning.

        A task whose owner is still asked holds a slot too; how long the owner takes says nothing of the queue's tasks.
        """
        self.open = 0
        """The number of tasks that were started and have not ended; some may wait without a slot."""
        self._longest_seconds = UNKNOWN_SECONDS

    # -- how long its tasks take ------------------------------------------------------------------------

    def stopped(self, execution: Execution, ran_seconds: float | None = None) -> bool:
        """Record that a task runs no more, for now or after a whole run, and has no slot; return whether it had one."""
        if ran_seconds is not None:
            self._longest_seconds = max(ran_seconds, FORGETTING * self._longest_seconds)
        self.running.pop(execution, None)
        held, execution.slot = execution.slot, False
        self.slots -= held
        return held

    def is_quick(self, now: float, lag: float = 0.0) -> bool:
        """Tell whether the queue's tasks are quick, by the longest recent run and the oldest run under way.

        `lag` is the event loop's delay in seconds, by which all runs and round trips are longer.
        """
        bound = QUICK_SECONDS + 4 * lag
        oldest = next(iter(self.running.values()), now)
        return self._longest_seconds < bound and now - oldest < bound

    # -- credit -----------------------------------------------------------------------------------------

    def most_in_hand(self, slots: int) -> int:
        """Return how many tasks of a quick queue the agent may hold: one per slot, plus what ends during a fetch.

        The bound `slots.most_in_hand` limits the number.
        """
        ending = slots * REFILL_SECONDS / max(self._longest_seconds, 0.001)
        return min(most_in_hand(slots), slots + int(ending))

    @property
    def unused(self) -> int:
        """The unused prefetch: how many deliveries the broker may still send to the queue's consumers."""
        return sum(max(0, consumer.prefetch - consumer.unsettled) for consumer in self.consumers)

    def needs_check(self) -> bool:
        """Tell whether to check an unpaused queue's prefetch often: tasks have or want slots, or it is used up."""
        return not self.paused and bool(self.slots or self.waiting or not self.unused)

    @property
    def wants_a_slot(self) -> bool:
        """True when the queue can use a free slot: a task waits in this agent, or perhaps in the queue."""
        return not self.paused and (bool(self.waiting) or (self.may_hold_more and not self.changing))

    def credit_is_wrong(self, free: int, limit: int, now: float, lag: float) -> bool:
        """Tell whether the unused prefetch has been too large or too small for a while, for the tasks that could start.

        That is, mostly, over twice or under half of them.

        The method sets `missing`. Quick tasks may arrive before their slots are free, up to `limit`. When a task has
        ended, its acknowledgement is probably on the way and brings another delivery; the patience with it is limited,
        as the acknowledgement may wait for the task's owner. Tasks that await others use credit up and start nothing.
        """
        unused, credit, coming = self.unused, sum(consumer.prefetch for consumer in self.consumers), False
        if free and credit and self.is_quick(now, lag):
            self.missing = limit + self.open - self.slots - credit
            fits = unused > 0 or self.missing <= 0
        else:
            self.missing = free - unused
            coming = sum(consumer.unsettled for consumer in self.consumers) > self.open + len(self.waiting)
            fits = unused <= 2 * free and free <= 2 * unused
        since = self.wrong_since or now
        patience = (CREDIT_PATIENCE_SECONDS if unused else STARVING_SECONDS) + coming * ACK_SECONDS + 2 * lag
        over = not fits and now - since >= patience
        self.wrong_since = None if fits or over else since
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
        self._closing += 1
        try:
            for consumer in consumers:
                await consumer.cancel()
        finally:
            self._closing -= 1
        late, self._late = self._late, []
        for delivery in late:
            self.give_back_late(delivery)

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

    def give_back_late(self, delivery: Delivery) -> None:
        """Return a delivery that must not start here, once no consumer is left that would bring it again at once.

        Each return counts at the broker, which gives a task up at its delivery limit.
        """
        if self.consumers or self._closing:
            self._late.append(delivery)
        else:
            self.give_back(delivery)

    def returnable(self, overdue: float = inf) -> list[Execution]:
        """Return the waiting tasks that should go back to their queue, because they waited too long for a slot.

        Their time was over by the instant `overdue`. A task that went back three times (`MAX_HAND_BACKS`), by the
        broker's delivery count, stays.
        """
        return [
            execution
            for execution in self.waiting
            if (times := execution.delivery.delivery_count) < MAX_HAND_BACKS
            and execution.since + HAND_BACK_SECONDS * 2**times <= overdue
        ]


# Weighted fair admission of the three priority levels to an agent's slots.
#
# The weights are 8:4:1, by smooth weighted round robin (as nginx balances its upstreams), over the levels that have
# tasks to start. With two slots or more one is kept for P0 until a P0 task runs, unless the agent has `reserve=0`; a P0
# start on that slot counts against P0's share like any other.

_FARTHEST = 26
"""The turns that a level may save or owe while other levels could not start: two rounds."""
WEIGHTS = {Priority.P0: 8, Priority.P1: 4, Priority.P2: 1}


def most_in_hand(slots: int) -> int:
    """Return how many unsettled deliveries an agent with so many slots may hold, but for tasks that await others."""
    return 2 * slots + 16


class Turns:
    """The weighted round robin of the priority levels: 8 turns for P0, 4 for P1, 1 for P2 while all have tasks."""

    def __init__(self) -> None:
        self._turn = dict.fromkeys(Priority, 0)

    def choose(self, waiting: Collection[Priority], eligible: Sequence[Priority]) -> Priority:
        """Return which eligible priority level gets the next turn, by the weights and past turns of those that wait.

        Each waiting level's weight is added to its balance, and the largest balance wins; a level that waits alone just
        wins. A choice among several levels resets the balance of a level that does not wait.
        """
        if len(waiting) == 1:
            return eligible[0]
        for level in waiting:
            self._turn[level] = min(_FARTHEST, self._turn[level] + WEIGHTS[level])
        best = max(eligible, key=lambda level: (self._turn[level], WEIGHTS[level]))
        self._turn[best] = max(-_FARTHEST, self._turn[best] - sum(WEIGHTS[level] for level in waiting))
        for level in Priority:
            if level not in waiting:
                self._turn[level] = 0
        return best


class Slots:
    """The slots of an agent process, given to the priority levels by weighted turns."""

    def __init__(self, total: int, *, reserve: int = 1) -> None:
        """Create `total` free slots, of which `reserve`, but never all, are kept for tasks of priority P0."""
        self.total = total
        self._reserve = min(reserve, total - 1)
        self._taken = dict.fromkeys(Priority, 0)
        self.in_use = 0
        """The number of slots that hold a task."""
        self._turns = Turns()

    def startable(self, level: Priority) -> int:
        """Return how many tasks of a priority level could start now."""
        kept = 0 if level is Priority.P0 else max(0, self._reserve - self._taken[Priority.P0])
        return max(0, self.total - self.in_use - kept)

    def take(self, level: Priority) -> None:
        """Take a slot for a task of a priority level, without a check that one is free."""
        self._taken[level] += 1
        self.in_use += 1

    def take_at_once(self, level: Priority) -> bool:
        """Take a slot for a task of a priority level if one is free; return whether a slot was taken."""
        if self.in_use + self._reserve >= self.total and not self.startable(level):
            return False
        self._taken[level] += 1
        self.in_use += 1
        return True

    def give_back(self, level: Priority) -> None:
        """Free the slot of a task of a priority level."""
        self._taken[level] -= 1
        self.in_use -= 1

    def choose(self, waiting: Collection[Priority]) -> Priority | None:
        """Return the waiting priority level that gets the next slot; None when no waiting level may start a task."""
        eligible = [level for level in waiting if self.startable(level)]
        if not eligible:
            return None
        return self._turns.choose(waiting, eligible)
