"""The check that no event of a publisher is missing, by the numbers in the events' ids.

Events are published at most once, and a full queue drops its oldest. A publisher of Coditect numbers its events, so a
number that is not the next one shows a loss that no error reported.
"""

from __future__ import annotations

from collections import OrderedDict

MOST_PUBLISHERS = 10_000
MOST_DIGITS = 18
"""A longer number is a stranger's id."""


class Continuity:
    """The number of the last event of each publisher, by which a missing event is noticed."""

    def __init__(self, most: int = MOST_PUBLISHERS) -> None:
        self._most = most
        self._last: OrderedDict[str, int] = OrderedDict()

    def reset(self) -> None:
        """Forget all publishers, whose next events may have any number."""
        self._last.clear()

    def follows(self, identity: str) -> bool:
        """Tell whether no event is missing between the publisher's last one and the one with this id; note the id.

        The first event of a publisher always follows, and so does one whose id has no number.
        """
        publisher, _, digits = identity.rpartition("-")
        if not publisher or not (digits.isascii() and digits.isdigit() and len(digits) <= MOST_DIGITS):
            return True
        number, last = int(digits), self._last.get(publisher)
        self._last[publisher] = number if last is None else max(number, last)
        self._last.move_to_end(publisher)
        if len(self._last) > self._most:
            self._last.popitem(last=False)
        return last is None or number <= last + 1
