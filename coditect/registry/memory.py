"""The registry's in-memory twin, which behaves as the Redis registry; tests set its time and its faults."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self

from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.model.limits import Rate
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration
from coditect.registry.document import decode_load, decode_registration, encode_load, encode_registration
from coditect.registry.port import GONE_SECONDS, LAPSED, LEFT, MOST_GONE, Search, TokenBucket, TokenLease

REGISTRY_CALL_SECONDS = 0.9
"""The longest time that a registry call takes before it fails, as with Redis."""


@dataclass(slots=True)
class _RegistryEntry:
    registration: bytes
    load: bytes
    ends: float
    beat_ms: int
    gone: str = ""
    """Why the agent went away, at `ends`; empty while it lives."""


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryRegistry:
    """An in-memory registry that keeps agents as the JSON documents that Redis would hold.

    Switches for tests, each from the next call on: `failing` refuses calls, `slow_seconds` delays them (beyond
    CALL_SECONDS a call writes, and is unavailable all the same), `wipe` loses everything.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic, wall_ms: Callable[[], int] = _system_ms) -> None:
        """Take two clocks: `now`, in seconds, by which leases end, and `wall_ms`, the wall time in milliseconds."""
        self._wall_ms = wall_ms
        self.failing = False
        self.slow_seconds = 0.0
        self._now = now
        self.wipe()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def wipe(self) -> None:
        """Remove everything, such as agents, counters and start marks, as happens in a Redis that restarts empty."""
        self._entries: dict[AgentId, _RegistryEntry] = {}
        self._gone: dict[AgentId, _RegistryEntry] = {}
        self._turns: dict[str, int] = {}
        self._starts: dict[str, tuple[AgentId, float]] = {}
        self._handed_back: dict[str, tuple[int, float]] = {}
        self._buckets: dict[str, TokenBucket] = {}

    def extend(self, agent_ids: Collection[AgentId], seconds: float) -> None:
        """Extend the leases of the given agents by some seconds, for tests that skip time."""
        for agent_id in agent_ids:
            if agent_id in self._entries:
                self._entries[agent_id].ends += seconds

    async def register(self, registration: Registration, load: Load, *, lease_seconds: float) -> None:
        """Write an agent's registration and load, in place of an earlier registration."""
        entry = _RegistryEntry(encode_registration(registration), encode_load(load), 0, self._wall_ms())
        async with self._call():
            entry.ends = self._now() + lease_seconds
            self._living()
            self._gone.pop(registration.agent_id, None)
            self._entries[registration.agent_id] = entry

    async def renew(self, agent_id: AgentId, load: Load, *, lease_seconds: float) -> bool:
        """Extend an agent's lease and write its load; return False when the agent is unknown."""
        async with self._call():
            entry = self._living().get(agent_id)
            if entry is not None:
                entry.load, entry.beat_ms = encode_load(load), self._wall_ms()
                entry.ends = self._now() + lease_seconds
            return entry is not None

    async def deregister(self, agent_id: AgentId) -> None:
        """Remove an agent from the living, and keep its last record for a day; idempotent."""
        async with self._call():
            if agent_id in self._living():
                self._leave(agent_id, LEFT, self._now())

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        """Return the living agents that match a search, sorted by agent id."""
        async with self._call():
            records = [self._record(entry) for _, entry in sorted(self._living().items())]
            return tuple(filter(search.matches, records))

    async def leases(self) -> Mapping[AgentId, int]:
        """Return the remaining lease of every living agent, in milliseconds."""
        async with self._call():
            return {agent_id: round((entry.ends - self._now()) * 1000) for agent_id, entry in self._living().items()}

    async def get(self, agent_id: AgentId) -> AgentRecord | None:
        """Return the record of a living agent; None when no living agent has the id."""
        async with self._call():
            entry = self._living().get(agent_id)
            return None if entry is None else self._record(entry)

    async def gone(self, agent_id: AgentId | None = None) -> tuple[AgentRecord, ...]:
        """Return the last records of the agents that went away within a day, or of one of them, sorted by id."""
        async with self._call():
            self._living()
            oldest, found = self._now() - GONE_SECONDS, sorted(self._gone.items())
            return tuple(
                self._record(left) for known, left in found if left.ends > oldest and agent_id in (None, known)
            )

    async def capabilities(self) -> frozenset[str]:
        """Return the names of all capabilities that living agents offer."""
        records = await self.find(Search())
        return frozenset(offer.name for record in records for offer in record.registration.capabilities)

    async def now_ms(self) -> int:
        """Return the registry's wall time in milliseconds since the Unix epoch."""
        async with self._call():
            return self._wall_ms()

    async def next_turn(self, name: str) -> int:
        """Increment the named counter, which all clients share for round robin, and return its new value."""
        async with self._call():
            turn = self._turns[name] = self._turns.get(name, 0) + 1
            return turn

    async def lease_tokens(self, capability: str, rate: Rate, wanted: int) -> TokenLease:
        """Take up to `wanted` tokens, each for one task's start, from the fleet's bucket of a capability's rate."""
        async with self._call():
            bucket = self._buckets.setdefault(capability, TokenBucket())
            return bucket.lease(rate, wanted, round(self._now() * 1e6))

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

        Nothing is written for a task that was returned unstarted as often as it had `deliveries`.
        """
        async with self._call():
            holder, ends = self._starts.get(task, (agent_id, math.inf))
            free = holder in (agent_id, instead_of) or ends <= self._now()
            if free and (deliveries is None or self._times_handed_back(task) < deliveries):
                self._starts[task] = (agent_id, self._now() + keep_seconds)
            return None if free else holder

    async def clear_start(self, task: str, agent_id: AgentId) -> None:
        """Remove an agent's start mark of a task, and the count of the task's returns without a start; idempotent."""
        async with self._call():
            self._unmark(task, agent_id)
            self._handed_back.pop(task, None)

    async def hand_back(self, tasks: Collection[str], agent_id: AgentId, *, keep_seconds: float) -> None:
        """For each task that an agent returned unstarted, count the return, and remove the agent's start mark."""
        async with self._call():
            for task in tasks:
                self._unmark(task, agent_id)
                self._handed_back[task] = (self._times_handed_back(task) + 1, self._now() + keep_seconds)

    def _unmark(self, task: str, agent_id: AgentId) -> None:
        if self._starts.get(task, (None, 0.0))[0] == agent_id:
            del self._starts[task]

    def _times_handed_back(self, task: str) -> int:
        times, ends = self._handed_back.get(task, (0, math.inf))
        return times if ends > self._now() else 0

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """Run a call's block, unless calls fail; then answer as late as a slow registry does, or not at all."""
        if self.failing:
            raise RegistryUnavailable("The registry did not answer", reason="failing")
        yield
        await asyncio.sleep(min(self.slow_seconds, REGISTRY_CALL_SECONDS))
        if self.slow_seconds > REGISTRY_CALL_SECONDS:
            raise RegistryUnavailable("The registry did not answer", reason="slow")

    def _living(self) -> dict[AgentId, _RegistryEntry]:
        now = self._now()
        for agent_id in [known for known, entry in self._entries.items() if entry.ends <= now]:
            self._leave(agent_id, LAPSED, self._entries[agent_id].ends)
        return self._entries

    def _leave(self, agent_id: AgentId, reason: str, at: float) -> None:
        entry = self._entries.pop(agent_id)
        entry.ends, entry.gone = at, reason
        latest = sorted((self._gone | {agent_id: entry}).items(), key=lambda item: item[1].ends)
        self._gone = dict(latest[-MOST_GONE:])

    def _record(self, entry: _RegistryEntry) -> AgentRecord:
        left = 0 if entry.gone else round((entry.ends - self._now()) * 1000)
        load = replace(decode_load(entry.load), beat_ms=entry.beat_ms)
        if entry.gone:
            load = replace(load, status=AgentStatus.OFFLINE, trouble=entry.gone)
        return AgentRecord(decode_registration(entry.registration), load, left)
