"""A pool of Redis connections with a time limit on every call, for the registry and the dispatchers' task graph.

Redis may be killed, wiped, slow or full at any time: a call then raises, within its limit, the error that its user
chose, and the next call connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
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
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from coditect.aio.cancellation import heeded
from coditect.errors import Retryable, SetupError
from coditect.settings.addresses import check_address

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
EXAMPLE = "rediss://user:password@host:6379/0?ssl_ca_certs=/path/to/ca.pem"
_TLS_PARAMETERS = ("ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")
_ONE_DATABASE = re.compile(r"unix://|rediss?://([^/?]*@)?[^/?,@]*(/\d*)?/?(\?|$)", re.IGNORECASE)
_BY_SENTINELS = re.compile(
    r"\w+\+sentinel://((?P<signed>[^/?]*)@)?(?P<places>[^/?@]+)/(?P<name>[^/?]+)(/(?P<database>\d*))?/?(\?(?P<query>.*))?$"
)
PARAMETERS = (*_TLS_PARAMETERS, "client_name", "db", "health_check_interval", "socket_keepalive", "ssl_min_version")
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
"""The errors of a Redis that answers but cannot be used, with the sentence and the fix for each."""


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
        """Return the version of a Redis that keeps what is written to it, after writing two keys that last 1 ms.

        A user with the rights of a dispatcher is enough. Without the right to INFO, this cannot find out whether Redis
        evicts keys, and adds a note to the version.

        Raises:
            SetupError: when Redis answers, but refuses, or may evict keys; with the fix.
            Retryable: when it does not answer.
        """
        try:
            hello = self.redis.execute_command("HELLO", 2)  # type: ignore[no-untyped-call] # redis-py says no types here
            answer: Any = await self.bounded("hello", hello)
            keep = read_scripts("coditect.registry", "keep")["keep"]
            await self.bounded("write", self.redis.eval(keep, 2, "coditect:doctor", "rq:doctor"))
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
        facts = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=False))
        version = facts.get(b"version", facts.get("version", "unknown"))
        text = version.decode() if isinstance(version, bytes) else str(version)
        return text if memory is not None else f"{text}; {UNSEEN_EVICTION}"

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
        for one in (self.redis, *sentinels):
            with contextlib.suppress(Retryable):
                await self.bounded("close", one.aclose())


def read_scripts(package: str, *names: str, shared: str = "") -> dict[str, str]:
    """Return a package's Lua scripts `lua/<name>.lua` by name, each preceded by the script named `shared`, if any."""

    def read(name: str) -> str:
        return files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")

    before = read(shared) + "\n" if shared else ""
    return {name: before + read(name) for name in names}


def _client(url: str, timeout_seconds: float) -> Redis:
    check_address(url, "CODITECT_REDIS_URL", example=EXAMPLE, parameters=PARAMETERS)
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
    given = dict(parse_qsl(parts["query"] or ""))
    tls: dict[str, Any] = {"ssl": url.startswith("rediss")}
    tls |= {parameter: given[parameter] for parameter in _TLS_PARAMETERS if parameter in given and tls["ssl"]}
    limits = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    sentinel = Sentinel(  # type: ignore[no-untyped-call] # redis-py says no types here
        [(host.hostname, host.port or SENTINEL_PORT) for host in hosts],
        sentinel_kwargs={**limits, **tls},
    )
    master: Redis = sentinel.master_for(
        parts["name"],
        db=int(parts["database"] or given.get("db") or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        **tls,
        **_each(timeout_seconds),
    )
    return master
