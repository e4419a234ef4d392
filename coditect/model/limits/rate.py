"""Rate limits as values: how many executions of a capability may begin in the whole fleet, and in what bursts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

from coditect.model import arguments

MOST_PER_UNIT = 1_000_000
LONGEST_HOLD_SECONDS = 1.0
SHORTEST_HOLD_SECONDS = 0.1

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
_PATTERN = re.compile(r"(\d{1,7})\s*/\s*([smh])")
_FIX = 'such as "10/s", "100/m" or "1000/h", or Rate("100/m", burst=10)'


@dataclass(frozen=True, slots=True)
class Rate:
    """A bound on the executions of a capability that begin in the whole fleet, such as `Rate("100/m", burst=10)`.

    In any span of t seconds at most `per_second` · t, rounded up, and `most_at_once` executions begin.

    Raises:
        InputError: for a limit or burst out of its bounds; the error names the parameter.
    """

    limit: str
    """A whole number of 1 to 1,000,000 executions per second, minute or hour: `10/s`, `100/m` or `1000/h`."""
    burst: int | None = None
    """The executions that may begin at once after a pause; None means as many as the limit gives in one second."""

    def __post_init__(self) -> None:
        limit = arguments.text("rate", self.limit)
        found = _PATTERN.fullmatch(limit.strip())
        if found is None or not 1 <= int(found[1]) <= MOST_PER_UNIT:
            arguments.refuse("rate", "A rate is a number per second, minute or hour", limit, _FIX)
        object.__setattr__(self, "limit", f"{int(found[1])}/{found[2]}")
        if self.burst is not None:
            arguments.whole("burst", self.burst, 1, MOST_PER_UNIT)

    @property
    def per_second(self) -> float:
        """The mean number of executions per second that the rate allows."""
        count, _, unit = self.limit.partition("/")
        return int(count) / _UNIT_SECONDS[unit]

    @property
    def most_at_once(self) -> int:
        """The executions that may begin at once: the declared burst, or else those of one second, rounded up."""
        return self.burst or max(1, ceil(self.per_second))

    @property
    def hold_seconds(self) -> float:
        """The seconds for which an agent may keep an unused token (the right to begin one execution); at most 1.

        It is the time in which the rate adds half a burst, but not under that for one token, or 0.1 s if that is less.
        """
        half_a_burst, one = (self.most_at_once - 1) / (2 * self.per_second), 1 / self.per_second
        return max(min(SHORTEST_HOLD_SECONDS, one), min(LONGEST_HOLD_SECONDS, half_a_burst))

    @property
    def capacity(self) -> int:
        """The tokens of a full token bucket: the burst minus those that are added in `hold_seconds`; at least 1."""
        return max(1, self.most_at_once - int(self.per_second * self.hold_seconds))

    def __str__(self) -> str:
        return self.limit if self.burst is None else f"{self.limit}, burst {self.burst}"


def rate_of(given: Rate | str | None) -> Rate | None:
    """Return a Rate as it is, or the Rate that a text such as `"100/m"` states; None stays None.

    Raises:
        InputError: for any other value.
    """
    if given is None or isinstance(given, Rate):
        return given
    if not isinstance(given, str):
        arguments.refuse("rate", "A rate is a number per second, minute or hour", given, _FIX)
    return Rate(given)
