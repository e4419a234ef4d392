"""A pool of Redis connections with a time limit on every call, for the registry and the dispatchers' task graph.

Redis may be killed, wiped, slow or full at any time: a call then raises, within its limit, the error that its user
chose, and the next call connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ChildDeadlockedError, RedisClusterException, RedisError

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
PARAMETERS = (*_TLS_PARAMETERS, "client_name", "db", "health_check_interval", "socket_keepalive", "ssl_min_version")
"""The parameters of a URL of Redis; the time limits and the protocol are Coditect's own."""


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
            return _watched(urlsplit(url), timeout_seconds)
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


def _watched(url: SplitResult, timeout_seconds: float) -> Redis:
    """Return a client of the Redis master that the sentinels name; each new connection asks them again."""
    signed, _, places = url.netloc.rpartition("@")
    hosts = [place.partition(":") for place in places.split(",")]
    name, _, database = url.path.strip("/").partition("/")
    if not name or not all(host for host, _, _ in hosts):
        raise ValueError(url.path)
    user, _, password = signed.partition(":")
    given = dict(parse_qsl(url.query))
    tls: dict[str, Any] = {"ssl": url.scheme.startswith("rediss")}
    tls |= {parameter: given[parameter] for parameter in _TLS_PARAMETERS if parameter in given and tls["ssl"]}
    limits = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    sentinel = Sentinel(  # type: ignore[no-untyped-call] # redis-py says no types here
        [(host, int(port or SENTINEL_PORT)) for host, _, port in hosts],
        sentinel_kwargs={**limits, **tls},
    )
    master: Redis = sentinel.master_for(
        name,
        db=int(database or given.get("db") or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        **tls,
        **_each(timeout_seconds),
    )
    return master
