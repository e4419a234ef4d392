"""Consume: how much an agent takes in hand, and who of it starts next.

An agent holds nothing that it cannot start. It asks for as many deliveries as slots are free or will
probably be within a round trip; one that waited `HAND_BACK_SECONDS` all the same goes back with the others of
its queue, and the queue is consumed again when a slot frees. A task that awaits another agent gives its slot
away (`suspend`) and takes one before anything new when it goes on (`resume`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from coditect.agent.feed import Feed, Held, Rounds
from coditect.agent.slots import Slots, Turns, most_in_hand
from coditect.background import Background
from coditect.broker.port import Broker, Delivery
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.task import Task

log = logging.getLogger(__name__)

HAND_BACK_SECONDS = 0.05
FETCH_SECONDS = 0.025
PATROL_SECONDS = 0.01
RETRY_SECONDS = 0.5
SLACK_SECONDS = 0.5
MOST_LANES = 8
MOST_SHRINKING = 32
"""Feeds of which one look takes credit back; each costs the broker two calls."""

Screen = Callable[[Delivery], Task | None]
"""Reads a delivery; None when it was dealt with and needs no slot."""


class Intake:
    """Feeds of all queues, over the slots of one agent process."""

    def __init__(
        self,
        broker: Broker,
        slots: Slots,
        background: Background,
        *,
        screen: Screen,
        start: Callable[[Held], None],
    ) -> None:
        self._broker = broker
        self._slots = slots
        self._background = background
        self._screen = screen
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._rounds = Rounds()
        self._candidates: dict[Priority, dict[Feed, None]] = {level: {} for level in Priority}
        self._resuming: deque[tuple[asyncio.Future[None], Priority]] = deque()
        self._suspended: Counter[int] = Counter()
        self._parked = 0
        self._turns = Turns()
        self._patrol: asyncio.TimerHandle | None = None
        self.waiting = 0
        """Deliveries in hand that have no slot yet."""
        self.closed = False

    @property
    def suspended(self) -> int:
        """How many tasks await others, without a slot."""
        return self._suspended.total() + self._parked

    async def open(self, queue: str, level: Priority, *, group: str | None = None, passes_on: bool = False) -> None:
        """Starts to consume a queue whose tasks count to this level; `passes_on` as in `Feed`.

        Raises: NotFound, BrokerUnavailable.
        """
        feed = Feed(queue, level, group=group or level.value, passes_on=passes_on)
        self._rounds.add(feed)
        await self._add_lane(feed, max(1, self._slots.startable(level)))

    def is_free(self, queue: str) -> bool:
        """Whether another task like those of that queue would start here at once as a P1, and it holds none."""
        feed = None if self.closed else self._rounds.by_queue.get(queue)
        return feed is not None and self._nobody_waits and feed.unused > 0 and self._slots.startable(Priority.P1) > 0

    # -- arrivals ---------------------------------------------------------------------------------------

    def _arrived(self, feed: Feed, delivery: Delivery) -> None:
        if self.closed:
            feed.give_back(delivery)
            return
        task = self._screen(delivery)
        if task is None:
            return
        now = self._loop.time()
        held = Held(delivery, task, feed, now)
        self._rounds.touch(feed)
        if feed.reserved:
            feed.reserved -= 1
            self._go(held, now)
        elif self._nobody_waits and self._slots.startable(feed.level):
            self._slots.take(feed.level)
            self._go(held, now)
        else:
            feed.waiting.append(held)
            self.waiting += 1
            self._candidates[feed.level][feed] = None
            self._admit()
            self._watch()

    @property
    def _nobody_waits(self) -> bool:
        urgent, normal, bulk = self._candidates.values()
        return not (self._resuming or urgent or normal or bulk)

    def _go(self, held: Held, now: float) -> None:
        self._occupy(held, now)
        self._start(held)
        self._watch()

    @staticmethod
    def _occupy(held: Held, now: float) -> None:
        held.slot = True
        held.feed.started(held, now)

    # -- admission --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Gives free slots away: to what resumes first, then by weight."""
        while self._resuming and self._slots.free > 0:
            turn, its_level = self._resuming.popleft()
            if not turn.done():
                self._slots.take(its_level)
                turn.set_result(None)
        fetches: dict[Feed, int] = {}
        while not self.closed and (level := self._slots.choose([p for p, c in self._candidates.items() if c])):
            self._serve(level, fetches)
        for feed, many in fetches.items():
            self._change(feed, self._fetch(feed, many))

    def _serve(self, level: Priority, fetches: dict[Feed, int]) -> None:
        candidates = self._candidates[level]
        feed = next(iter(candidates))
        del candidates[feed]
        held = feed.next_waiting()
        self.waiting = sum(len(one.waiting) for one in self._rounds.feeds) if held is None else self.waiting - 1
        if held is not None:
            self._slots.take(level)
            self._go(held, self._loop.time())
        elif feed.paused and not feed.changing:
            self._slots.take(level)
            feed.reserved += 1
            fetches[feed] = fetches.get(feed, 0) + 1
        if feed.wants_a_slot:
            candidates[feed] = None  # behind the others: queues of one level take turns

    async def _fetch(self, feed: Feed, many: int) -> None:
        """Consumes a paused queue again, with the slots that were reserved for it."""
        feed.paused = False
        self._candidates[feed.level].pop(feed, None)
        try:
            await self._add_lane(feed, many)
            await asyncio.sleep(FETCH_SECONDS)  # what the queue holds arrives within a round trip
        except CoditectError as error:
            log.warning("A queue cannot be consumed yet", extra={"queue": feed.queue, "reason": str(error)})
            self._loop.call_later(RETRY_SECONDS, self._pause, feed)
        finally:
            feed.changing = False
            for _ in range(feed.reserved):
                self._slots.give_back(feed.level)
            feed.reserved = 0
            self._admit()
            self._watch()

    def _pause(self, feed: Feed) -> None:
        feed.paused = True
        self._candidates[feed.level][feed] = None
        self._admit()

    async def _add_lane(self, feed: Feed, prefetch: int) -> None:
        lane = await self._broker.consume(feed.queue, partial(self._arrived, feed), prefetch=prefetch, group=feed.group)
        if self.closed:
            await lane.cancel()
        else:
            feed.lanes.append(lane)

    # -- what a running task does -----------------------------------------------------------------------

    def finished(self, held: Held, ran_seconds: float | None) -> None:
        """Its handler ended: the slot is free, the delivery still has to be settled."""
        if ran_seconds is not None:
            held.feed.ran(ran_seconds)
        held.over = True
        if held.awaiting:
            self._suspended[held.task.depth] -= 1
        self._give_back(held)

    def _give_back(self, held: Held) -> None:
        if held.slot:
            held.slot = False
            held.feed.stopped(held)
            self._free(held.feed.level)
            if held.feed.slow and not self.waiting:
                self._hurry()

    def _free(self, level: Priority) -> None:
        self._slots.give_back(level)
        if not self._nobody_waits:
            self._admit()
        self._watch()

    def may_suspend(self, held: Held, most: int) -> bool:
        """Whether it may await somebody without a slot.

        The bound counts for each depth of nesting by itself: whoever is awaited can then always await in its
        turn, and the deepest, who await nobody, always end.
        """
        return held.awaiting > 0 or self._suspended[held.task.depth] < most

    def suspend(self, held: Held) -> None:
        """It awaits somebody else: its slot is free meanwhile. To be followed by `resume` or `abandon`."""
        held.awaiting += 1
        if held.awaiting == 1 and not held.over:
            self._suspended[held.task.depth] += 1
            self._give_back(held)

    async def resume(self, held: Held) -> None:
        """An await is over; after the last of them it takes the next slot that frees, before anything new.

        While it still awaits others it goes on without a slot: with one it could keep them from theirs.
        """
        level, taken = held.feed.level, False
        try:
            if held.awaiting == 1 and not held.over:
                await self._next_slot(level)
                taken = True
        finally:
            self.abandon(held)
        if taken and (held.awaiting or held.over):
            self._free(level)
        elif taken:
            self._occupy(held, self._loop.time())

    async def _next_slot(self, level: Priority) -> None:
        turn = self._loop.create_future()
        self._resuming.append((turn, level))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free(level)
            raise

    def abandon(self, held: Held) -> None:
        """An await is over and nobody goes on with what it brought: it was canceled, or its handler ended."""
        held.awaiting -= 1
        if held.awaiting == 0 and not held.over:
            self._suspended[held.task.depth] -= 1

    def park(self, many: int) -> None:
        """So many more deliveries wait beside their run, without a slot: others may come in their place."""
        self._parked += many
        self._watch()

    # -- the patrol -------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Looks again in a moment, while there is something to look after."""
        if self._patrol is None and not self.closed:
            self._patrol = self._loop.call_later(PATROL_SECONDS, self._look)

    def _hurry(self) -> None:
        """Looks again at once: a slot is free and nothing is in hand for it."""
        if self._patrol is not None and not self.closed:
            self._patrol.cancel()
            self._patrol = self._loop.call_later(0, self._look)

    def _look(self) -> None:
        self._patrol = None
        if self.closed:
            return
        now = self._loop.time()
        feeds = self._rounds.due(now)
        soon = sum(feed.soon(now) for feed in feeds)
        for feed in feeds:
            if feed.changing:
                continue
            if self._overdue(feed, now, soon):
                if feed.unused:
                    self._change(feed, self._hand_back(feed))
                else:
                    self._return_waiting(feed, since=now - HAND_BACK_SECONDS)  # nothing of it can come back here
            elif feed.slow and feed.lanes and not feed.unused:
                self._change(feed, self._replace_lanes(feed, 0))  # else every ack would bring another delivery
        self._balance(feeds, now, soon)
        if self.waiting or self._slots.in_use or len(feeds) < len(self._rounds.feeds):
            self._watch()

    def _change(self, feed: Feed, work: Coroutine[Any, Any, None]) -> None:
        """Opens or closes lanes of a feed; one change at a time."""
        feed.changing = True
        self._background.start(work, name=f"change {feed.queue}")

    def _overdue(self, feed: Feed, now: float, soon: int) -> bool:
        """Whether what waits has waited long enough to go back; a little more when slots are about to free."""
        patience = HAND_BACK_SECONDS if soon < self.waiting else 2 * HAND_BACK_SECONDS
        return bool(feed.waiting) and feed.waiting[0].since <= now - patience

    def _balance(self, feeds: list[Feed], now: float, soon: int) -> None:
        """Gives every feed the credit that its level could start: more where it is short, less where it idles."""
        short: dict[Priority, list[tuple[Feed, int]]] = {}
        shrinking = 0
        for feed in feeds:
            if feed.changing or feed.paused:
                continue
            wanted, unused = self._slots.startable(feed.level) + soon, feed.unused
            if wanted > 2 * unused and (not unused or not self._slots.in_use):
                short.setdefault(feed.level, []).append((feed, wanted - unused - len(feed.waiting)))
            feed.slack_since = (feed.slack_since or now) if unused > wanted else None
            slack = feed.slack_since is not None and now - feed.slack_since >= SLACK_SECONDS
            if slack and shrinking < MOST_SHRINKING:
                shrinking += 1
                feed.slack_since = None
                self._change(feed, self._replace_lanes(feed, wanted))
        shares = self._shared(self._slots.free + soon - self.waiting, list(short))
        for level, wanting in short.items():
            for feed, missing in wanting:
                share = max(shares[level] // len(wanting), 0 if feed.lanes else 1)
                room = most_in_hand(self._slots.total) + self.suspended - feed.credit
                many = min(missing, share, room)
                if many > 0:
                    self._change(feed, self._widen(feed, many))

    def _shared(self, spare: int, levels: list[Priority]) -> Counter[Priority]:
        """How much of the spare credit each level gets, by weight."""
        if len(levels) == 1:
            return Counter({levels[0]: spare})
        return Counter(self._turns.choose(levels, levels) for _ in range(spare if levels else 0))

    async def _hand_back(self, feed: Feed) -> None:
        """Returns what the feed holds unstarted and stops listening until a slot frees."""
        lanes, feed.lanes = feed.lanes, []
        try:
            for lane in lanes:
                await lane.cancel()
        finally:
            feed.changing = False
            self._return_waiting(feed)
            self._pause(feed)

    def _return_waiting(self, feed: Feed, *, since: float = math.inf) -> None:
        """Returns what arrived before that moment, in order."""
        while feed.waiting and feed.waiting[0].since <= since:
            feed.give_back(feed.waiting.popleft().delivery)
            self.waiting -= 1
        if not feed.wants_a_slot:
            self._candidates[feed.level].pop(feed, None)

    async def _widen(self, feed: Feed, many: int) -> None:
        if len(feed.lanes) >= MOST_LANES:
            await self._replace_lanes(feed, feed.unused + many)
            return
        try:
            await self._add_lane(feed, many)
        except CoditectError as error:
            log.warning("A queue cannot be consumed further", extra={"queue": feed.queue, "reason": str(error)})
        finally:
            feed.changing = False
            self._watch()

    async def _replace_lanes(self, feed: Feed, prefetch: int) -> None:
        """Closes the feed's lanes; what they delivered stays in hand and does not count any more."""
        lanes, feed.lanes = feed.lanes, []
        try:
            for lane in lanes:
                await lane.cancel()
            if prefetch:
                await self._add_lane(feed, prefetch)
        except CoditectError as error:
            log.warning("A queue cannot be consumed again yet", extra={"queue": feed.queue, "reason": str(error)})
        finally:
            feed.changing = False
            self._watch()

    async def close(self) -> None:
        """Takes nothing more; returns what has not started."""
        self.closed = True
        if self._patrol is not None:
            self._patrol.cancel()
        for feed in self._rounds.feeds:
            lanes, feed.lanes = feed.lanes, []
            for lane in lanes:
                await lane.cancel()
            self._return_waiting(feed)
