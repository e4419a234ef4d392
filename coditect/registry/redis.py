"""The registry in Redis 7: atomic Lua scripts (`lua/`) over a handful of keys, which `keys` lists.

Redis may be killed, wiped, slow or full at any time: a call then raises RegistryUnavailable within its limit, and the
next call connects again. Redis Cluster needs the keys in one slot: a prefix with a hash tag, such as ``{coditect}:``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from coditect.errors import InvalidTask, RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.model.limits.rate import Rate
from coditect.model.registration import AgentRecord, Load, Registration
from coditect.registry.connection import RedisConnection, read_scripts
from coditect.registry.document import decode_load, decode_registration, encode_load, encode_registration
from coditect.registry.keys import (
    ANY_AGENT,
    KEYS,
    RATE_PREFIX,
    RETURNS_PREFIX,
    START_PREFIX,
    TURNS_KEY,
    capability_term,
    tag_term,
)
from coditect.registry.port import Search
from coditect.registry.token_bucket import SLOWEST_SECONDS, TokenLease
from coditect.wire import json

log = logging.getLogger(__name__)

_PACKAGE = "coditect.registry"
_SCRIPTS = {
    **read_scripts(
        _PACKAGE, "register", "renew", "deregister", "find", "get", "leases", "capabilities", shared="shared"
    ),
    **read_scripts(_PACKAGE, "mark_start", "clear_start", "hand_back", "lease_tokens"),
}


class RedisRegistry:
    """The registry in one Redis database; safe for concurrent calls on one event loop.

    `timeout_seconds` bounds each call, connecting included. Use as an async context manager.
    """

    def __init__(self, url: str, *, prefix: str = "coditect:", timeout_seconds: float = 0.9) -> None:
        """Prepare the Lua scripts and the Redis connection pool, without connecting yet.

        Raises:
            SetupError: when the URL is no Redis URL.
        """
        self._connection = RedisConnection(url, timeout_seconds=timeout_seconds, unavailable=_unavailable)
        self._redis = self._connection.redis
        self._bounded = self._connection.bounded
        self._keys = [prefix + key for key in KEYS]
        self._turns_key = prefix + TURNS_KEY
        self._rate_prefix = prefix + RATE_PREFIX
        self._start_prefixes = (prefix + START_PREFIX, prefix + RETURNS_PREFIX)
        self._scripts = {step: self._redis.register_script(text) for step, text in _SCRIPTS.items()}
        self._decode = lru_cache(maxsize=1024)(decode_registration)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def register(self, registration: Registration, load: Load, *, lease_seconds: float) -> None:
        """Write an agent's registration, load and index entries atomically, in place of an earlier registration."""
        await self._run(
            "register",
            registration.agent_id,
            encode_registration(registration),
            encode_load(load),
            json.dumps(_terms(registration)),
            _milliseconds(lease_seconds),
        )

    async def renew(self, agent_id: AgentId, load: Load, *, lease_seconds: float) -> bool:
        """Extend an agent's lease and write its load; return False when any part of its registry entry is gone."""
        written = encode_load(load)
        return bool(await self._run("renew", agent_id, written, _milliseconds(lease_seconds)))

    async def deregister(self, agent_id: AgentId) -> None:
        """Remove an agent's registration, load and index entries; idempotent."""
        await self._run("deregister", agent_id)

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        """Return the living agents that match a search, sorted by id, in one round trip; skip unreadable entries."""
        term = ANY_AGENT
        if search.capability is not None:
            term = capability_term(search.capability)
        elif search.tag is not None:
            term = tag_term(search.tag)
        records = self._records(await self._run("find", term))
        return tuple(sorted(filter(search.matches, records), key=lambda record: record.agent_id))

    async def leases(self) -> Mapping[AgentId, int]:
        """Return the remaining lease of every living agent, in milliseconds, in one round trip."""
        now, found = await self._run("leases")
        pairs = zip(found[::2], found[1::2], strict=True)
        return {AgentId(agent.decode(errors="surrogateescape")): round(float(ends)) - now for agent, ends in pairs}

    async def get(self, agent_id: AgentId) -> AgentRecord | None:
        """Return the record of a living agent; None when no living agent has the id, or its record is unreadable."""
        return next(self._records(await self._run("get", agent_id)), None)

    async def capabilities(self) -> frozenset[str]:
        """Return the names of all capabilities that living agents offer."""
        names = await self._run("capabilities")
        return frozenset(name.decode() for name in names)

    async def now_ms(self) -> int:
        """Return the wall time of the Redis server, in milliseconds since the Unix epoch."""
        seconds, microseconds = await self._bounded("now", self._redis.time())
        return int(seconds) * 1_000 + int(microseconds) // 1_000

    async def next_turn(self, name: str) -> int:
        """Increment and return the clients' shared round-robin counter; a retry after a lost reply may skip one."""
        return int(await self._bounded("next_turn", self._redis.hincrby(self._turns_key, name, 1)))

    async def lease_tokens(self, capability: str, rate: Rate, wanted: int) -> TokenLease:
        """Take up to `wanted` tokens, each for one task's start, from the fleet's bucket of a capability's rate."""
        interval_us = 1e6 / rate.per_second
        arguments = (wanted, interval_us, rate.capacity * interval_us, _milliseconds(rate.hold_seconds))
        call = self._scripts["lease_tokens"](
            keys=[self._rate_prefix + capability], args=[*arguments, _milliseconds(SLOWEST_SECONDS)]
        )
        tokens, hold_ms, wait_us = await self._bounded("lease_tokens", call)
        return TokenLease(int(tokens), int(hold_ms) / 1000, int(wait_us) / 1e6)

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
        delivered = "" if deliveries is None else deliveries
        arguments = (agent_id, _milliseconds(keep_seconds), instead_of or "", delivered)
        holder = await self._run_on_marks("mark_start", [task], *arguments)
        return None if holder is None else AgentId(holder.decode(errors="surrogateescape"))

    async def clear_start(self, task: str, agent_id: AgentId) -> None:
        """Remove an agent's start mark of a task, and the count of the task's returns without a start; idempotent."""
        await self._run_on_marks("clear_start", [task], agent_id)

    async def hand_back(self, tasks: Collection[str], agent_id: AgentId, *, keep_seconds: float) -> None:
        """For each task that an agent returned unstarted, count the return, and remove the agent's start mark."""
        await self._run_on_marks("hand_back", tasks, agent_id, _milliseconds(keep_seconds))

    async def _run(self, step: str, *arguments: str | bytes | int) -> Any:
        return await self._bounded(step, self._scripts[step](keys=self._keys, args=[*map(_encode, arguments)]))

    async def _run_on_marks(self, step: str, tasks: Iterable[str], *arguments: str | int) -> Any:
        keys = [_encode(prefix + task) for task in tasks for prefix in self._start_prefixes]
        return await self._bounded(step, self._scripts[step](keys=keys, args=[*map(_encode, arguments)]))

    def _records(self, rows: Iterable[tuple[bytes, bytes, int]]) -> Iterator[AgentRecord]:
        for registration, load, lease_ms in rows:
            try:
                yield AgentRecord(self._decode(registration), decode_load(load), lease_ms)
            except InvalidTask as error:
                log.warning("An entry of the registry is not readable", extra={"reason": str(error)})


def _unavailable(step: str, reason: str) -> RegistryUnavailable:
    return RegistryUnavailable("The registry did not answer", step=step, reason=reason)


def _terms(registration: Registration) -> list[str]:
    offers = [capability_term(offer.name) for offer in registration.capabilities]
    return [ANY_AGENT, *offers, *map(tag_term, sorted(registration.all_tags))]


def _encode(argument: str | bytes | int) -> bytes:
    if isinstance(argument, bytes):
        return argument
    return str(argument).encode(errors="surrogateescape")  # text from a command line may be no UTF-8


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
