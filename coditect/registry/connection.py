"""A Redis whose every call ends in time: the registry's, and the task graph's.

Redis may be killed, wiped, slow or full at any time: a call then raises within its limit what its user says,
and the next call connects anew by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ChildDeadlockedError, RedisClusterException, RedisError

from coditect.aio.cancellation import heeded
from coditect.errors import Retryable, SetupError

Answer = TypeVar("Answer")

VENDOR_ERRORS = (RedisError, RedisClusterException, ChildDeadlockedError, OSError, ValueError)
"""Every family that redis-py raises. OSError includes the TimeoutError of our own limit, ValueError is its
parser's when the server speaks something else."""

CONNECTIONS = 8
SENTINELS = ("redis+sentinel://", "rediss+sentinel://")
SENTINEL_PORT = 26_379


class RedisConnection:
    """Connections to one Redis database; safe for concurrent calls on one event loop.

    `timeout_seconds` bounds each call, connecting included; `unavailable` makes the error of one that failed.
    """

    def __init__(self, url: str, *, timeout_seconds: float, unavailable: Callable[[str, str], Retryable]) -> None:
        """Connects to nothing yet. Raises: SetupError when the URL is none that Redis knows."""
        self._timeout_seconds = timeout_seconds
        self._unavailable = unavailable
        self.redis = _client(url, timeout_seconds)

    async def bounded(self, step: str, call: Awaitable[Answer]) -> Answer:
        """The answer of the call; `unavailable(step, reason)` is raised when there is none in time."""
        try:
            with heeded():
                async with asyncio.timeout(self._timeout_seconds):
                    return await call
        except VENDOR_ERRORS as error:
            raise self._unavailable(step, f"{type(error).__name__}: {error}"[:200]) from error

    async def close(self) -> None:
        """Closes what is open, within the limit."""
        with contextlib.suppress(Retryable):
            await self.bounded("close", self.redis.aclose())


def _client(url: str, timeout_seconds: float) -> Redis:
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
    """What holds of each connection."""
    return {
        "protocol": 2,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 1),  # a pooled connection may be stale: once more, on a new one
    }


def _watched(url: SplitResult, timeout_seconds: float) -> Redis:
    """The master that the sentinels name; asked for again with each new connection."""
    signed, _, places = url.netloc.rpartition("@")
    hosts = [place.partition(":") for place in places.split(",")]
    name, _, database = url.path.strip("/").partition("/")
    if not name or not all(host for host, _, _ in hosts):
        raise ValueError(url.path)
    user, _, password = signed.partition(":")
    sentinel = Sentinel(  # type: ignore[no-untyped-call] # redis-py says no types here
        [(host, int(port or SENTINEL_PORT)) for host, _, port in hosts],
        sentinel_kwargs={"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds},
    )
    master: Redis = sentinel.master_for(
        name,
        db=int(database or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        ssl=url.scheme.startswith("rediss"),
        **_each(timeout_seconds),
    )
    return master
