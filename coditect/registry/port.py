"""The interface of the agent registry (its port), with two adapters: `redis` and `memory`.

A registration is a lease: it lives `lease_seconds` from its last heartbeat. Losing the registry loses nothing else:
execution goes on, and every agent's next heartbeat registers the agent again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Protocol, TypeVar

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId, TaskId
from coditect.model.limits import Rate
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration
from coditect.telemetry.metrics import LOOKUP_SECONDS, LOOKUPS, REGISTRY_UP, Metrics

log = logging.getLogger(__name__)

# The token buckets of rate limits in the registry, and the rule by which both of its adapters give out tokens.
#
# A bucket is one instant: `due_us`, at which the tokens given so far are earned (the generic cell rate algorithm, as
# ATM and many HTTP servers limit rates). Nothing runs while a bucket is not asked. `lua/lease_tokens.lua` is the same
# rule.

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


LEASE_SECONDS = 3.0
BEAT_SECONDS = 1.0
GONE_SECONDS = 24 * 3600.0
"""How long the registry keeps the last record of an agent that went away."""
MOST_GONE = 1_000
"""The number of agents that went away whose last record the registry keeps."""
MOST_GONE_BYTES = 4 * 1024 * 1024
"""The most bytes of the registrations of agents that went away in one answer, which has the latest of them."""
LAPSED = "its heartbeats stopped"
LEFT = "it was drained or stopped"


@dataclass(frozen=True, slots=True)
class Search:
    """The criteria of a search for agents; every field that is set must match, an empty search finds all agents."""

    capability: str | None = None
    tag: str | None = None
    """A tag that the agent or one of its capabilities must have."""
    keyword: str | None = None
    """A text to find, in any case, in an agent's name or tags, or a capability's name, description or tags."""
    status: AgentStatus | None = None

    def matches(self, record: AgentRecord) -> bool:
        """Tell whether an agent's record matches all criteria of the search."""
        agent = record.registration
        if self.capability is not None and all(offer.name != self.capability for offer in agent.capabilities):
            return False
        if self.tag is not None and self.tag not in agent.all_tags:
            return False
        if self.status is not None and self.status is not record.load.status:
            return False
        keyword = (self.keyword or "").casefold()
        return any(keyword in text.casefold() for text in texts_of(agent))


def texts_of(agent: Registration) -> Iterator[str]:
    """Yield the texts of an agent that a keyword search reads: names, tags and descriptions."""
    yield agent.name
    yield from agent.all_tags
    for offer in agent.capabilities:
        yield offer.name
        yield offer.description


class Registry(Protocol):
    """The interface of the fleet's directory of agents; an async context manager that opens even if its server is down.

    Every call ends within 1 s.

    Raises:
        RegistryUnavailable: when the registry does not answer; retryable, and a write may have been done or not.
    """

    async def register(self, registration: Registration, load: Load, *, lease_seconds: float) -> None:
        """Write an agent's registration, load and index entries atomically, in place of an earlier registration."""

    async def renew(self, agent_id: AgentId, load: Load, *, lease_seconds: float) -> bool:
        """Extend an agent's lease and write its load; return False when the agent is unknown and must register."""

    async def deregister(self, agent_id: AgentId) -> None:
        """Remove an agent from the living, and keep its last record for a day; idempotent."""

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        """Return the living agents that match a search, sorted by agent id."""

    async def leases(self) -> Mapping[AgentId, int]:
        """Return the remaining lease of every living agent, in milliseconds; cheaper than `find`."""

    async def get(self, agent_id: AgentId) -> AgentRecord | None:
        """Return the record of a living agent; None when no living agent has the id."""

    async def gone(self, agent_id: AgentId | None = None) -> tuple[AgentRecord, ...]:
        """Return the last records of the agents that went away within a day, or of one of them, sorted by agent id.

        Their status is `offline`, and their trouble says why: LAPSED or LEFT. The registry keeps the latest MOST_GONE,
        and an answer has the latest of them within MOST_GONE_BYTES.
        """

    async def capabilities(self) -> frozenset[str]:
        """Return the names of all capabilities that living agents offer."""

    async def now_ms(self) -> int:
        """Return the registry's wall time in ms since the Unix epoch, to which all processes adjust their clocks."""

    async def next_turn(self, name: str) -> int:
        """Increment the named counter, which all clients share for round robin, and return its new value."""

    async def lease_tokens(self, capability: str, rate: Rate, wanted: int) -> TokenLease:
        """Take up to `wanted` tokens, each for one task's start, from the fleet's bucket of a capability's rate.

        Agents that ask by different rates all get the slowest that any asked by within the last minute. A bucket that
        the registry does not know, or lost, is full.
        """

    async def mark_start(
        self,
        task: str,
        agent_id: AgentId,
        *,
        keep_seconds: float,
        instead_of: AgentId | None = None,
        deliveries: int | None = None,
    ) -> AgentId | None:
        """Write an agent's start mark for a task, unless another agent's mark stays; return the other agent, or None.

        Another agent's mark stays, unless that agent is `instead_of`. A mark lives `keep_seconds`. No mark is written
        for a task that was handed back as often as it had `deliveries`.
        """

    async def clear_start(self, task: str, agent_id: AgentId) -> None:
        """Remove an agent's start mark of a task, and the count of the task's returns without a start; idempotent.

        Another agent's mark stays.
        """

    async def hand_back(self, tasks: Collection[str], agent_id: AgentId, *, keep_seconds: float) -> None:
        """For each task that an agent returned unstarted, count the return, and remove the agent's start mark.

        A count lives `keep_seconds` from the last hand-back.
        """


# The fleet's common wall time: the machine's clock, corrected by its difference from the registry's clock.
#
# Deadlines and other instants travel between machines, and machines differ. Every process compares its clock with the
# registry's when it starts and twice a minute, warns when they differ, and corrects its own from then on. A difference
# of more than a day is no drift but a wrong setting, and is reported, not corrected. Without a registry the clock is
# not corrected.


COMPARE_SECONDS = 30.0
TOLERATED_MS = 100
"""The clock difference up to which nothing is corrected; half of the registry's answer time, if that is longer."""
TOLD_MS = 1_000
MOST_CORRECTED_MS = 86_400_000
_FIX = "synchronize the machines' clocks (NTP)"


async def following(clock: Clock, registry: Registry, background: Supervisor) -> ReferenceClock:
    """Return a clock that is corrected by the registry's: compared at once, then every 30 s by a background task."""
    reference = ReferenceClock(clock)
    await reference.compare(registry)
    background.keep(partial(reference.follow, registry), name="clock", critical=False, idle=True)
    return reference


class ReferenceClock:
    """A wall clock corrected by the registry's, unless both differ by very little or by more than a day."""

    def __init__(self, own: Clock) -> None:
        self._own = own
        self._correction_ms = 0
        self._told_ms = 0
        self.ahead_ms = 0
        """How many ms the machine's clock was ahead of the registry's at the last comparison; negative: behind."""

    def now_ms(self) -> int:
        """Return the corrected wall time in milliseconds since the Unix epoch."""
        return self._own.now_ms() - self._correction_ms

    def chance(self) -> float:
        """Return a random number in [0, 1) from the random source of the wrapped clock."""
        return self._own.chance()

    def new_id(self) -> TaskId:
        """Return a new task id: a UUIDv7 of the machine's own, uncorrected time."""
        return self._own.new_id()

    @property
    def doubt(self) -> str:
        """Return a warning text with the clock's difference from the registry's clock; empty below 1 s."""
        if abs(self.ahead_ms) < TOLD_MS:
            return ""
        side = "ahead of" if self.ahead_ms > 0 else "behind"
        done = "" if self._correction_ms else " and too far to be corrected"
        return f"this machine's clock is {abs(self.ahead_ms) / 1000:.0f} s {side} the registry's{done}"

    async def follow(self, registry: Registry) -> None:
        """Compare the machine's clock with the registry's every 30 s, for ever."""
        while True:
            await asyncio.sleep(COMPARE_SECONDS)
            await self.compare(registry)

    async def compare(self, registry: Registry) -> None:
        """Ask the registry for its time once, and set the clock's correction; without an answer, change nothing."""
        before = self._own.now_ms()
        try:
            reference = await registry.now_ms()
        except RegistryUnavailable as error:
            log.debug("The clock is not compared: the registry does not answer", extra={"reason": str(error)})
            return
        after = self._own.now_ms()
        ahead = (before + after) // 2 - reference
        self.ahead_ms = 0 if abs(ahead) <= max(TOLERATED_MS, (after - before + 1) // 2) else ahead
        self._correction_ms = self.ahead_ms if abs(self.ahead_ms) <= MOST_CORRECTED_MS else 0
        self._tell()

    def _tell(self) -> None:
        if abs(self.ahead_ms - self._told_ms) < TOLD_MS:
            return
        self._told_ms = self.ahead_ms
        facts = {"ahead_ms": self.ahead_ms, "fix": _FIX}
        if abs(self.ahead_ms) > MOST_CORRECTED_MS:
            log.error("This machine's clock differs from the registry's by more than a day", extra=facts)
        elif self.ahead_ms:
            log.warning("This machine's clock differs from the registry's and is corrected", extra=facts)
        else:
            log.info("This machine's clock agrees with the registry's again")


Found = TypeVar("Found")


class Lookups:
    """The count and the durations of one process's look-ups in the registry."""

    def __init__(self, metrics: Metrics) -> None:
        self._answered = metrics.counter(LOOKUPS, outcome="answered")
        self._failed = metrics.counter(LOOKUPS, outcome="failed")
        self._seconds = metrics.histogram(LOOKUP_SECONDS)
        self._up: bool | None = None
        """Whether the registry answered the latest look-up; None before the first."""
        metrics.observe_all(REGISTRY_UP, lambda: {} if self._up is None else {(): float(self._up)})

    async def measured(self, lookup: Awaitable[Found]) -> Found:
        """Await a look-up and return its result; count it as answered, with its duration, or as failed.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        began = time.monotonic()
        try:
            found = await lookup
        except RegistryUnavailable:
            self._failed.value += 1
            self._up = False
            raise
        self._up = True
        self._seconds.record(time.monotonic() - began)
        self._answered.value += 1
        return found
