"""The capacity of one dispatcher: how many tasks of each capability may be published and not ended.

Priorities are bound late: a node that is not yet published can be overtaken, canceled and rebuilt at no cost. So only
as many are published as keep the agents busy: twice their slots, or as many as completed within the last 100 ms.

A capability without a queue is paused: one publication probes for the queue after a pause that grows, and all other
nodes of the capability wait in the backlog.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coditect.aio.supervisor import Backoff

LEAST = 64
RECENT_SECONDS = 0.1
SLOTS_FACTOR = 2
NO_QUEUE_PAUSES = Backoff(1.0, 30.0)
QUEUE_PROBE_SECONDS = 2.0
"""The longest pause between probes for the missing queue of a capability that living agents offer."""


@dataclass(slots=True)
class _PublishingPause:
    """The pause in publishing a capability's tasks that no queue takes, until one publication tries again."""

    misses: int
    until: float


class Capacity:
    """The count and limit of one dispatcher's published, unended tasks by capability; `now` is a monotonic clock."""

    def __init__(self, now: Callable[[], float], *, least: int = LEAST) -> None:
        self._now = now
        self._least = least
        self._under_way: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._ended: defaultdict[str, deque[float]] = defaultdict(deque)
        self._slots: Mapping[str, int] = {}
        self._pauses: dict[str, _PublishingPause] = {}

    def begin(self, capability: str) -> None:
        """Count one more published task of a capability; if its pause was over, begin a longer one (at most 30 s)."""
        self._under_way[capability] += 1
        pause = self._pauses.get(capability)
        if pause is not None and self._now() >= pause.until:
            pause.misses += 1
            pause.until = self._now() + NO_QUEUE_PAUSES.pause(pause.misses)

    def end(self, capability: str, *, completed: bool = False) -> None:
        """Count a capability's published task as ended; with `completed`, count it as a recent completion, too."""
        self._under_way[capability] -= 1
        if completed:
            self._ended[capability].append(self._now())

    def keep(self, capability: str, number: int) -> None:
        """Reserve capacity to publish `number` nodes that are about to be claimed, until `free` releases it."""
        self._kept[capability] += number

    def free(self, capability: str, number: int) -> None:
        """Release capacity that `keep` reserved, after the nodes were claimed and counted, or the claim was refused."""
        self._kept[capability] -= number

    def note_no_queue(self, capability: str) -> None:
        """Pause publishing for a capability, unless it is paused, because no queue took one of its publications."""
        self._pauses.setdefault(capability, _PublishingPause(1, self._now() + NO_QUEUE_PAUSES.first))

    def note_queue(self, capability: str) -> bool:
        """End a capability's pause, because a queue took a publication; tell whether the capability was paused."""
        return self._pauses.pop(capability, None) is not None

    def set_slots(self, slots: Mapping[str, int]) -> None:
        """Set how many slots the whole fleet has for each capability, from which the limits follow.

        A paused capability is probed now when it gets its first slots, and every 2 s while it has any.
        """
        before, self._slots = self._slots, dict(slots)
        for capability, pause in self._pauses.items():
            if slots.get(capability):
                pause.until = min(pause.until, self._now() + QUEUE_PROBE_SECONDS * bool(before.get(capability)))

    def under_way(self, capability: str) -> int:
        """Return the number of a capability's tasks that are published and not ended."""
        return self._under_way[capability]

    def room(self) -> dict[str, int]:
        """Return, by capability, how many more tasks may be published; the key "" is for all others."""
        return {"": self._least} | {
            capability: self.room_for(capability)
            for capability in dict.fromkeys((*self._under_way, *self._kept, *self._pauses))
        }

    def room_for(self, capability: str) -> int:
        """Return how many more tasks of one capability may be published; may be negative."""
        pause = self._pauses.get(capability)
        if pause is not None:
            return int(self._now() >= pause.until) - self._kept[capability]
        recent, since = self._ended[capability], self._now() - RECENT_SECONDS
        while recent and recent[0] < since:
            recent.popleft()
        limit = max(SLOTS_FACTOR * self._slots.get(capability, 0), len(recent), self._least)
        return limit - self._under_way[capability] - self._kept[capability]
