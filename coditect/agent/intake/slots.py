"""Who may start next: weighted fair admission of the three priority levels to an agent's slots.

8:4:1 by smooth weighted round robin (as nginx balances its upstreams), over the levels that have something
to start. With two slots or more one is kept for P0 until a P0 task runs, unless the agent has `reserve=0`; a
P0 start there counts against P0's share like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coditect.model.capability import Priority

_FARTHEST = 26
"""Two rounds: what a level may save or owe while the others could not start."""
WEIGHTS = {Priority.P0: 8, Priority.P1: 4, Priority.P2: 1}


def most_in_hand(slots: int) -> int:
    """The deliveries of one queue that may be unsettled at once, while no task is suspended."""
    return 2 * slots + 16


class Turns:
    """Whose turn it is, by weight; a level that had nothing to start neither saves nor owes turns."""

    def __init__(self) -> None:
        self._turn = dict.fromkeys(Priority, 0)

    def choose(self, waiting: Collection[Priority], eligible: Sequence[Priority]) -> Priority:
        """One of the eligible levels; the others of those that wait save their turns."""
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
    """Counts slots and decides whose turn it is."""

    def __init__(self, total: int, *, reserve: int = 1) -> None:
        """`reserve` is how many are kept for P0; with a single slot none is."""
        self.total = total
        self._reserve = min(reserve, total - 1)
        self._taken = dict.fromkeys(Priority, 0)
        self._in_use = 0
        self._turns = Turns()

    @property
    def in_use(self) -> int:
        """Slots taken."""
        return self._in_use

    def startable(self, level: Priority) -> int:
        """How many tasks of this level could start now."""
        kept = 0 if level is Priority.P0 else max(0, self._reserve - self._taken[Priority.P0])
        return max(0, self.total - self._in_use - kept)

    def take(self, level: Priority) -> None:
        """A task of this level holds a slot from now on."""
        self._taken[level] += 1
        self._in_use += 1

    def give_back(self, level: Priority) -> None:
        """A task of this level gave its slot back."""
        self._taken[level] -= 1
        self._in_use -= 1

    def choose(self, waiting: Collection[Priority]) -> Priority | None:
        """Whose turn it is among the levels that wait; None when none of them may start now."""
        eligible = [level for level in waiting if self.startable(level)]
        if not eligible:
            return None
        return self._turns.choose(waiting, eligible)
