"""One queue as an agent consumes it: its lanes (consumers), what is in hand, and when it will be done.

A lane is a consumer with a fixed prefetch. More credit is another lane, less is a canceled one: a consumer's
prefetch cannot change, and what a canceled one delivered stays ours without counting any more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from coditect.broker.port import Consumer, Delivery
from coditect.model.capability import Priority
from coditect.model.task import Task


@dataclass(eq=False, slots=True)
class Held:
    """A task in hand. It waits, then holds a slot, may be suspended, and is settled once."""

    delivery: Delivery
    task: Task
    feed: Feed
    since: float
    """Loop time of its arrival."""
    slot: bool = False
    awaiting: int = 0
    """How many others it awaits right now; it has no slot while it is not 0."""
    over: bool = False
    """Its handler ended."""


AHEAD_SECONDS = 0.045
"""How far ahead the end of what runs is guessed: what is fetched for it waits about so long."""
SLOW_SECONDS = 0.025
"""From here on a run is long beside a round trip, so that credit is given for each one anew."""
MOST_AT_EACH_LOOK = 100
IDLE_LOOK_SECONDS = 0.0001
"""The time between two looks at an idle feed, where there are more than those, for each of them."""
_STRAGGLER = 3
_WEIGHT = 0.1


class Feed:
    """The lanes of one queue and the deliveries that wait for a slot."""

    def __init__(self, queue: str, level: Priority, *, group: str, passes_on: bool = False) -> None:
        """`passes_on`: what it gives back is for others, and only its dead letters come to them."""
        self.queue = queue
        self.level = level
        self.group = group
        """The channel of its lanes."""
        self._passes_on = passes_on
        self.waiting: deque[Held] = deque()
        self.lanes: list[Consumer] = []
        self.reserved = 0
        """Slots taken for deliveries that a new lane is fetching."""
        self.paused = False
        """Its unstarted deliveries were handed back; there is more in the queue."""
        self.changing = False
        """A lane is being opened or closed."""
        self.slack_since: float | None = None
        """Since when it may receive more than could start."""
        self._running: dict[Held, float] = {}
        self._mean_run_seconds: float | None = None

    @property
    def slow(self) -> bool:
        """Whether its runs are long beside a round trip."""
        return self._mean_run_seconds is not None and self._mean_run_seconds >= SLOW_SECONDS

    def give_back(self, delivery: Delivery) -> None:
        """It was not begun: whoever can takes it."""
        if self._passes_on:
            delivery.reject()
        else:
            delivery.requeue()

    def started(self, held: Held, now: float) -> None:
        """One of its tasks took a slot."""
        self._running[held] = now

    def stopped(self, held: Held) -> None:
        """It gave its slot back."""
        self._running.pop(held, None)

    def ran(self, seconds: float) -> None:
        """One run took so long."""
        mean = seconds if self._mean_run_seconds is None else self._mean_run_seconds
        self._mean_run_seconds = mean + _WEIGHT * (seconds - mean)

    def soon(self, now: float) -> int:
        """How many of its running tasks will probably end within `AHEAD_SECONDS`; stragglers are not counted on."""
        mean = self._mean_run_seconds
        if mean is None:
            return 0
        if mean < AHEAD_SECONDS:
            return len(self._running)
        due, late = now + AHEAD_SECONDS - mean, now - _STRAGGLER * mean
        count = 0
        for since in self._running.values():  # in order of their start
            if since > due:
                break
            count += since >= late
        return count

    @property
    def lively(self) -> bool:
        """Whether something of it runs, waits, or is to be fetched, or it has no credit."""
        return bool(self._running or self.waiting or self.paused or not self.lanes)

    @property
    def wants_a_slot(self) -> bool:
        """Whether it has something to start, in hand or to fetch."""
        return bool(self.waiting) or (self.paused and not self.changing)

    @property
    def unused(self) -> int:
        """How many deliveries may still come; with none the queue may hold more than we hear of."""
        return sum(max(0, lane.prefetch - lane.unsettled) for lane in self.lanes)

    @property
    def credit(self) -> int:
        """What its lanes may hold."""
        return sum(lane.prefetch for lane in self.lanes)

    def next_waiting(self) -> Held | None:
        """The oldest delivery that waits and is still ours."""
        while self.waiting:
            held = self.waiting.popleft()
            if not held.delivery.lost:
                return held
        return None


class Rounds:
    """Which feeds a look of the patrol visits: the lively ones each time, the others as often as their number allows.

    An agent may offer a thousand capabilities: three thousand feeds, most of them idle.
    """

    def __init__(self) -> None:
        self.feeds: list[Feed] = []
        self.by_queue: dict[str, Feed] = {}
        self._lively: dict[Feed, None] = {}
        self._next_full = 0.0

    def add(self, feed: Feed) -> None:
        """One more."""
        self.feeds.append(feed)
        self.by_queue[feed.queue] = feed

    def touch(self, feed: Feed) -> None:
        """Something happens in it."""
        self._lively[feed] = None

    def due(self, now: float) -> list[Feed]:
        """Those to look at now."""
        if now >= self._next_full or len(self.feeds) <= MOST_AT_EACH_LOOK:
            self._next_full = now + len(self.feeds) * IDLE_LOOK_SECONDS
            self._lively = {feed: None for feed in self.feeds if feed.lively}
            return self.feeds
        return list(self._lively)
