"""FoundationDB's cycle workload: the nodes of a ring, each holding the next one's number.

A swap takes three nodes that follow each other and changes their order, in one transaction. Whatever is
repeated, refused or lost: half a swap, or two swaps that did not see each other, break the ring.
"""

from __future__ import annotations

import random

from dispatcher.store.keys import Space
from dispatcher.store.transaction import Reads, Transaction, read_counter, write_counter


class Ring:
    def __init__(self, space: Space, size: int) -> None:
        self._space = space
        self._size = size

    def lay(self, tr: Transaction) -> None:
        for number in range(self._size):
            tr.set(self._space.pack((number,)), write_counter((number + 1) % self._size))

    def swap(self, tr: Transaction, first: int) -> None:
        second = self._next(tr, first)
        third = self._next(tr, second)
        fourth = self._next(tr, third)
        for number, following in ((first, third), (third, second), (second, fourth)):
            tr.set(self._space.pack((number,)), write_counter(following))

    def torn_swap(self, tr: Transaction, first: int) -> None:
        """A planted bug: reads by snapshot, so it does not see that another swap came in between."""
        second = self._next(tr.snapshot, first)
        third = self._next(tr.snapshot, second)
        fourth = self._next(tr.snapshot, third)
        for number, following in ((first, third), (third, second), (second, fourth)):
            tr.set(self._space.pack((number,)), write_counter(following))

    def is_whole(self, tr: Reads) -> bool:
        """Whether every node is passed once before the walk comes back."""
        seen, number = set(), 0
        while number not in seen:
            seen.add(number)
            number = self._next(tr, number)
        return number == 0 and len(seen) == self._size == len(tr.get_range(*self._space.range()))

    def any_node(self, seeded: random.Random) -> int:
        return seeded.randrange(self._size)

    def _next(self, tr: Reads, number: int) -> int:
        return read_counter(tr.get(self._space.pack((number,))))
