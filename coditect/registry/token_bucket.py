"""The token buckets of rate limits in the registry, and the rule by which both of its adapters give out tokens.

A bucket is one instant: `due_us`, at which the tokens given so far are earned (the generic cell rate algorithm, as ATM
and many HTTP servers limit rates). Nothing runs while a bucket is not asked. `lua/lease_tokens.lua` is the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from coditect.model.limits.rate import Rate

SLOWEST_SECONDS = 60.0
"""How long the slowest rate that an agent requested stays the rate of all agents, after the last such request."""


@dataclass(frozen=True, slots=True)
class TokenLease:
    """The tokens that an agent leased, each for one task's start; when they lapse; and the wait for the next token.

    `hold_seconds` counts from the request.
    """

    tokens: int
    hold_seconds: float
    wait_seconds: float
    """The seconds until the bucket has the next token."""


@dataclass(slots=True)
class TokenBucket:
    """The token bucket of one capability's rate limit; a new bucket is full."""

    due_us: int = 0
    slowest: Rate | None = None
    slowest_until_us: int = 0

    def lease(self, rate: Rate, wanted: int, now_us: int) -> TokenLease:
        """Take up to `wanted` tokens; the bucket refills at the slowest rate that agents requested in the last 60 s."""
        slowest = self.slowest
        if slowest is None or self.slowest_until_us <= now_us or rate.per_second <= slowest.per_second:
            self.slowest = slowest = rate
            self.slowest_until_us = now_us + round(SLOWEST_SECONDS * 1e6)
        interval_us = 1e6 / slowest.per_second
        tolerance_us = slowest.capacity * interval_us
        begins = max(self.due_us, now_us)
        tokens = max(0, min(wanted, int((now_us + tolerance_us - begins) / interval_us)))
        if tokens:
            begins = self.due_us = ceil(begins + tokens * interval_us)
        wait_us = max(0.0, begins + interval_us - tolerance_us - now_us)
        return TokenLease(tokens, slowest.hold_seconds, wait_us / 1e6)
