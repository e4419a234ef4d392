"""One queue as an agent consumes it: its lanes (consumers), and what is in hand and not started.

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


class Feed:
    """The lanes of one queue and the deliveries that wait for a slot."""

    def __init__(self, queue: str, level: Priority) -> None:
        self.queue = queue
        self.level = level
        self.waiting: deque[Held] = deque()
        self.lanes: list[Consumer] = []
        self.reserved = 0
        """Slots taken for deliveries that a new lane is fetching."""
        self.paused = False
        """Its unstarted deliveries were handed back; there is more in the queue."""
        self.changing = False
        """A lane is being opened or closed."""

    @property
    def wants_a_slot(self) -> bool:
        """Whether it has something to start, in hand or to fetch."""
        return bool(self.waiting) or (self.paused and not self.changing)

    @property
    def exhausted(self) -> bool:
        """Whether all its credit is in hand, so that the queue may hold more than we hear of."""
        return all(lane.unsettled >= lane.prefetch for lane in self.lanes)

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
