"""The address of a Redis that sentinels watch over."""

from __future__ import annotations

import pytest
from redis.asyncio.sentinel import SentinelConnectionPool

from coditect.errors import RegistryUnavailable, SetupError
from coditect.registry.connection import RedisConnection


def connection(url: str) -> RedisConnection:
    return RedisConnection(url, timeout_seconds=0.2, unavailable=lambda step, reason: RegistryUnavailable(step))


async def test_sentinels_the_masters_name_and_the_sign_in_are_read() -> None:
    made = connection("redis+sentinel://user:p%40ss@one:26380,two/mymaster/3")

    pool = made.redis.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    places = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(place["host"], place["port"]) for place in places] == [("one", 26380), ("two", 26379)]
    assert pool.service_name == "mymaster"
    wanted = {"db": 3, "username": "user", "password": "p@ss"}
    assert {name: pool.connection_kwargs[name] for name in wanted} == wanted
    await made.close()


async def test_sentinels_that_do_not_answer_are_a_registry_that_does_not() -> None:
    made = connection("redis+sentinel://127.0.0.1:1/mymaster")

    with pytest.raises(RegistryUnavailable):
        await made.bounded("ping", made.redis.ping())
    await made.close()


@pytest.mark.parametrize(
    "url", ["redis+sentinel://one:26379", "redis+sentinel://:26379/name", "redis+sentinel://a:b/c"]
)
def test_address_without_a_name_or_a_host_says_how_it_is_written(url: str) -> None:
    with pytest.raises(SetupError) as caught:
        connection(url)

    assert "redis+sentinel://" in str(caught.value)
