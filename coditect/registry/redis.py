"""The registry in Redis 7: atomic Lua scripts (`lua/`) over a handful of keys, which `keys` lists.

Redis may be killed, wiped, slow or full at any time: a call then raises RegistryUnavailable within its limit, and the
next call connects again. Redis Cluster needs the keys in one slot: a prefix with a hash tag, such as ``{coditect}:``.

The dispatchers' task graph uses the pool of connections, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ChildDeadlockedError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from coditect.aio.supervisor import heeded
from coditect.errors import InvalidTask, RegistryUnavailable, Retryable, SetupError
from coditect.model.ids import AgentId
from coditect.model.limits import Rate
from coditect.model.registration import AgentRecord, Load, Registration
from coditect.registry.document import (
    ANY_AGENT,
    KEYS,
    RATE_PREFIX,
    RETURNS_PREFIX,
    START_PREFIX,
    TURNS_KEY,
    capability_term,
    decode_load,
    decode_registration,
    encode_load,
    encode_registration,
    tag_term,
)
from coditect.registry.port import MOST_GONE_BYTES, SLOWEST_SECONDS, Search, TokenLease
from coditect.settings.addresses import check_address
from coditect.wire import json

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

VENDOR_ERRORS = (RedisError, RedisClusterException, ChildDeadlockedError, OSError, ValueError)
"""Every error class that redis-py raises for a failed call.

OSError includes the TimeoutError of the time limit; redis-py raises ValueError when the server speaks another protocol.
"""

CLOSED = "the handler is closed"
"""The end of the RuntimeError that uvloop raises for a write to a connection that was closed a moment ago."""

CONNECTIONS = 8
SENTINELS = ("redis+sentinel://", "rediss+sentinel://")
SENTINEL_PORT = 26_379
REDIS_URL_EXAMPLE = "rediss://user:password@host:6379/0?ssl_ca_certs=/path/to/ca.pem"
_TLS_VERSIONS = ("771", "772")
"""TLS 1.2 and 1.3, as Python's `ssl.TLSVersion` numbers them."""
_ONE_DATABASE = re.compile(r"unix://|rediss?://([^/?]*@)?[^/?,@]*(/\d*)?/?(\?|$)", re.IGNORECASE)
_BY_SENTINELS = re.compile(
    r"\w+\+sentinel://((?P<signed>[^/?]*)@)?(?P<places>[^/?@]+)/(?P<name>[^/?]+)(/(?P<database>\d*))?/?(\?(?P<query>.*))?$"
)
REDIS_URL_PARAMETERS = (
    "client_name",
    "db",
    "health_check_interval",
    "socket_keepalive",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
)
"""The parameters of a URL of Redis; the time limits and the protocol are Coditect's own."""


_FAULTS: tuple[tuple[tuple[type[RedisError], ...], str, str], ...] = (
    (
        (NoPermissionError,),
        "The user of Redis may not do what the registry needs",
        "give the user the rights in docs/task-graph.md: ~rq:* ~coditect:* +@all -@admin -@dangerous +info",
    ),
    (
        (AuthenticationError, AuthenticationWrongNumberOfArgsError),
        "Redis refuses the user or password",
        "check the user and password in CODITECT_REDIS_URL",
    ),
    (
        (ReadOnlyError,),
        "Redis is a read-only replica",
        "name the master in CODITECT_REDIS_URL, or the sentinels: redis+sentinel://one:26379,two:26379/NAME/0",
    ),
    (
        (MasterDownError,),  # redis-py calls it a ClusterDownError, too
        "Redis is a replica that has lost its master",
        "start the master and name it in CODITECT_REDIS_URL, or name the sentinels: "
        "redis+sentinel://one:26379,two:26379/NAME/0",
    ),
    (
        (OutOfMemoryError,),
        "Redis is full and takes no writes",
        "raise maxmemory (redis-cli config set maxmemory 1gb), or remove what others keep there",
    ),
    ((BusyLoadingError,), "Redis still loads its data", "wait until it has loaded them"),
    (
        (ClusterDownError, ClusterCrossSlotError, MovedError),
        "Redis is a node of a cluster, which shards its keys",
        "name a Redis without `cluster-enabled yes`, or sentinels: redis+sentinel://one:26379,two:26379/NAME/0",
    ),
)
"""The errors of a Redis that answers but cannot be used, with the sentence and the fix; the first that fits counts."""


_PACKAGE = "coditect.registry"
UNSEEN_EVICTION = "this user cannot see whether Redis evicts keys: redis-cli acl setuser NAME +info"
"""The note behind the version for a user without the right to INFO."""


class RedisConnection:
    """A pool of connections to one Redis database; safe for concurrent calls on one event loop.

    `timeout_seconds` bounds each call, connecting included; `unavailable` makes the error of a call that failed.
    """

    def __init__(self, url: str, *, timeout_seconds: float, unavailable: Callable[[str, str], Retryable]) -> None:
        """Prepare the Redis connection pool, without connecting yet.

        Raises:
            SetupError: when the URL is no Redis URL.
        """
        self._timeout_seconds = timeout_seconds
        self._unavailable = unavailable
        self.redis = _client(url, timeout_seconds)

    async def bounded(self, step: str, call: Awaitable[Answer]) -> Answer:
        """Await one Redis call within the time limit, and return the call's result.

        Raises:
            Retryable: the error of `unavailable(step, reason)`, when the call failed or was late.
        """
        try:
            with heeded():
                async with asyncio.timeout(self._timeout_seconds):
                    return await call
        except (*VENDOR_ERRORS, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not str(error).endswith(CLOSED):
                raise
            raise self._unavailable(step, f"{type(error).__name__}: {error}"[:200]) from error

    async def version(self) -> str:
        """Return the version of the Redis server; behind Sentinel, the version of the master."""
        facts = await self.bounded("version", self.redis.info("server"))
        return str(facts.get("redis_version", "unknown"))

    async def usable_version(self) -> str:
        """Return the version of a Redis that keeps what is written to it, after writing and removing two keys.

        A user with the rights of a dispatcher is enough. Without the right to INFO, this cannot find out whether Redis
        evicts keys, and adds a note to the version.

        Raises:
            SetupError: when Redis answers, but refuses, or may evict keys; with the fix.
            Retryable: when it does not answer.
        """
        try:
            version = await self.bounded("hello", self._greeted())
            script = await self.bounded("load", self.redis.script_load(read_scripts(_PACKAGE, "keep")["keep"]))
            await self.bounded("write", self.redis.evalsha(script, 2, "coditect:doctor", "rq:doctor"))
            memory = await self.bounded("memory", self._memory())
        except Retryable as error:
            for kinds, sentence, fix in _FAULTS:
                if isinstance(error.__cause__, kinds):
                    raise SetupError(sentence, reason=error.facts.get("reason"), fix=fix) from error
            if isinstance(error.__cause__, ResponseError):
                fix = f"correct in Redis, or in CODITECT_REDIS_URL, what Redis says: {error.__cause__}"
                raise SetupError("Redis refuses what the registry needs", fix=fix) from error
            raise
        if memory and memory.get("maxmemory") and (policy := memory.get("maxmemory_policy")) != "noeviction":
            fix = "redis-cli config set maxmemory-policy noeviction, and the same in its configuration"
            raise SetupError("Redis may evict keys of the registry and of RQ", policy=policy, fix=fix)
        return version if memory is not None else f"{version}; {UNSEEN_EVICTION}"

    async def _greeted(self) -> str:
        """Return the version by which Redis greets; before Redis 6, which has no greeting, the one that INFO tells."""
        try:
            answer: Any = await self.redis.execute_command("HELLO", 2)  # type: ignore[no-untyped-call] # redis-py says no types here
        except ResponseError as error:
            if not str(error).startswith("unknown command"):
                raise
            return str((await self.redis.info("server")).get("redis_version", "unknown"))
        facts = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=False))
        version = facts.get(b"version", facts.get("version", "unknown"))
        return version.decode() if isinstance(version, bytes) else str(version)

    async def _memory(self) -> dict[str, Any] | None:
        """Return the facts about the memory of Redis; None when the user may not ask for them."""
        try:
            facts: dict[str, Any] = await self.redis.info("memory")
        except NoPermissionError:
            return None
        return facts

    async def close(self) -> None:
        """Close all connections to Redis and to its sentinels, each within the time limit."""
        pool = self.redis.connection_pool
        sentinels = pool.sentinel_manager.sentinels if isinstance(pool, SentinelConnectionPool) else ()
        for client in (self.redis, *sentinels):
            with contextlib.suppress(Retryable):
                await self.bounded("close", client.aclose())


def read_scripts(package: str, *names: str, shared: str = "") -> dict[str, str]:
    """Return a package's Lua scripts `lua/<name>.lua` by name, each preceded by the script named `shared`, if any."""

    def read(name: str) -> str:
        return files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")

    before = read(shared) + "\n" if shared else ""
    return {name: before + read(name) for name in names}


def _client(url: str, timeout_seconds: float) -> Redis:
    check_address(url, "CODITECT_REDIS_URL", example=REDIS_URL_EXAMPLE, parameters=REDIS_URL_PARAMETERS)
    _check_tls_version(url)
    try:
        if url.startswith(SENTINELS):
            return _watched(url, timeout_seconds)
        if not _ONE_DATABASE.match(url):
            raise ValueError(url)
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=timeout_seconds, **_each(timeout_seconds)
        )
    except ValueError:
        sentence = "CODITECT_REDIS_URL is not a URL of Redis, such as redis://localhost:6379/0"
        fix = "with Sentinel: redis+sentinel://one:26379,two:26379/NAME_OF_THE_MASTER/0"
        raise SetupError(sentence, fix=fix) from None  # what urllib says may hold the password
    return Redis.from_pool(pool)


def _check_tls_version(url: str) -> None:
    """Check that a URL of Redis names no version of TLS before 1.2, which is the default.

    Raises:
        SetupError: otherwise.
    """
    for name, value in parse_qsl(url.partition("?")[2], keep_blank_values=True):
        if name == "ssl_min_version" and value not in _TLS_VERSIONS:
            fix = f"{name}=771 for TLS 1.2, {name}=772 for TLS 1.3, or leave it out of CODITECT_REDIS_URL"
            raise SetupError("The oldest version of TLS that is allowed is 1.2 or 1.3", parameter=name, fix=fix)


def _each(timeout_seconds: float) -> dict[str, Any]:
    """Return the options for each connection to Redis: protocol version, time limits and retry."""
    return {
        "protocol": 2,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 1),  # a pooled connection may be stale: once more, on a new one
    }


def _watched(url: str, timeout_seconds: float) -> Redis:
    """Return a client of the Redis master that the sentinels name; each new connection asks them again."""
    parts = _BY_SENTINELS.match(url)
    hosts = [] if parts is None else [urlsplit(f"//{place}") for place in parts["places"].split(",")]
    if parts is None or not all(host.hostname for host in hosts):
        raise ValueError(url)
    user, _, password = (parts["signed"] or "").partition(":")
    options: dict[str, Any] = {**parse_url(f"redis://?{parts['query'] or ''}")}
    database = options.pop("db", 0)
    database = int(parts["database"] or database)
    options["ssl"] = url.startswith("rediss")
    limits = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    sentinel = Sentinel(  # type: ignore[no-untyped-call] # redis-py says no types here
        [(host.hostname, host.port or SENTINEL_PORT) for host in hosts],
        sentinel_kwargs={**limits, **options},
    )
    master: Redis = sentinel.master_for(
        unquote(parts["name"]),
        db=database,
        username=unquote(user) or None,
        password=unquote(password) or None,
        **options,
        **_each(timeout_seconds),
    )
    return master


_SCRIPTS = {
    **read_scripts(
        _PACKAGE, "register", "renew", "deregister", "find", "get", "gone", "leases", "capabilities", shared="shared"
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

    async def __aexit__(self, *_: object) -> None:
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
        """Remove an agent from the living, and keep its last record for a day; idempotent."""
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

    async def gone(self, agent_id: AgentId | None = None) -> tuple[AgentRecord, ...]:
        """Return the last records of the agents that went away within a day, or of one of them, sorted by id."""
        rows = await self._run("gone", agent_id or "", MOST_GONE_BYTES)
        found = await asyncio.to_thread(lambda: tuple(self._records(rows)))  # they may have large schemas
        return tuple(sorted(found, key=lambda record: record.agent_id))

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
