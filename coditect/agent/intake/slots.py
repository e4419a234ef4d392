"""Weighted fair admission of the three priority levels to an agent's slots.

The weights are 8:4:1, by smooth weighted round robin (as nginx balances its upstreams), over the levels that have tasks
to start. With two slots or more one is kept for P0 until a P0 task runs, unless the agent has `reserve=0`; a P0 start
on that slot counts against P0's share like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coditect.model.capability import Priority

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
        self._in_use = 0
        self._turns = Turns()

    @property
    def in_use(self) -> int:
        """The number of slots that hold a task."""
        return self._in_use

    def startable(self, level: Priority) -> int:
        """Return how many tasks of a priority level could start now."""
        kept = 0 if level is Priority.P0 else max(0, self._reserve - self._taken[Priority.P0])
        return max(0, self.total - self._in_use - kept)

    def take(self, level: Priority) -> None:
        """Take a slot for a task of a priority level, without a check that one is free."""
        self._taken[level] += 1
        self._in_use += 1

    def take_at_once(self, level: Priority) -> bool:
        """Take a slot for a task of a priority level if one is free; return whether a slot was taken."""
        if self._in_use + self._reserve >= self.total and not self.startable(level):
            return False
        self._taken[level] += 1
        self._in_use += 1
        return True

    def give_back(self, level: Priority) -> None:
        """Free the slot of a task of a priority level."""
        self._taken[level] -= 1
        self._in_use -= 1

    def choose(self, waiting: Collection[Priority]) -> Priority | None:
        """Return the waiting priority level that gets the next slot; None when no waiting level may start a task."""
        eligible = [level for level in waiting if self.startable(level)]
        if not eligible:
            return None
        return self._turns.choose(waiting, eligible)
