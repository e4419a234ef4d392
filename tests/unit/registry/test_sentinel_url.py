"""The address of a Redis that sentinels watch over."""

from __future__ import annotations

import pytest
from redis.asyncio import SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from coditect.errors import RegistryUnavailable, SetupError
from coditect.registry.redis import RedisConnection


def connection(url: str) -> RedisConnection:
    return RedisConnection(url, timeout_seconds=0.2, unavailable=lambda step, reason: RegistryUnavailable(step))


async def test_sentinels_the_masters_name_and_the_sign_in_are_read() -> None:
    made = connection("redis+sentinel://user:p%40ss@one:26380,two,[::1]:26381/my%2Dmaster/3")

    pool = made.redis.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    places = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(place["host"], place["port"]) for place in places] == [("one", 26380), ("two", 26379), ("::1", 26381)]
    assert pool.service_name == "my-master"
    wanted = {"db": 3, "username": "user", "password": "p@ss"}
    assert {name: pool.connection_kwargs[name] for name in wanted} == wanted
    await made.close()


@pytest.mark.parametrize(("scheme", "encrypted"), [("redis", False), ("rediss", True)])
async def test_sentinels_are_asked_over_tls_when_the_master_is(scheme: str, encrypted: bool) -> None:
    made = connection(f"{scheme}+sentinel://one/mymaster" + ("?ssl_ca_certs=/ca.pem" if encrypted else ""))

    pool = made.redis.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    pools = [pool, *(one.connection_pool for one in pool.sentinel_manager.sentinels)]
    assert [issubclass(one.connection_class, SSLConnection) for one in pools] == [encrypted] * 2
    assert {one.connection_kwargs.get("ssl_ca_certs") for one in pools} == {"/ca.pem" if encrypted else None}
    await made.close()


@pytest.mark.parametrize("database", ["/3?", "?db=3&"])
async def test_parameters_count_for_the_master_and_its_sentinels(database: str) -> None:
    query = "ssl_min_version=772&client_name=me&health_check_interval=5&socket_keepalive=yes"
    made = connection(f"rediss+sentinel://one/mymaster{database}{query}")

    pool = made.redis.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    wanted = {"ssl_min_version": 772, "client_name": "me", "health_check_interval": 5, "socket_keepalive": True}
    for one in (pool, *(one.connection_pool for one in pool.sentinel_manager.sentinels)):
        assert {name: one.connection_kwargs[name] for name in wanted} == wanted
    assert pool.connection_kwargs["db"] == 3
    await made.close()


@pytest.mark.parametrize("address", ["rediss://host/0", "rediss+sentinel://host/mymaster"])
@pytest.mark.parametrize("version", ["768", "769", "770", "1", "TLSv1_2", "", "772&ssl_min_version=769"])
def test_version_of_tls_before_1_2_is_refused(address: str, version: str) -> None:
    with pytest.raises(SetupError, match="version of TLS") as refused:
        connection(f"{address}?ssl_min_version={version}")

    assert "ssl_min_version=771" in str(refused.value.facts["fix"])


@pytest.mark.parametrize("scheme", ["redis://host/0", "rediss://host/0", "rediss+sentinel://host/mymaster"])
@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("ssl_cert_reqs=none", "always verified"),
        ("ssl_cert_reqs", "always verified"),
        ("ssl_check_hostname=false", "always verified"),
        ("protocol=3", "unknown parameter"),
        ("ssl_ca=x", "unknown parameter"),
    ],
)
def test_parameter_that_weakens_tls_or_is_unknown_is_refused(scheme: str, parameter: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence) as refused:
        connection(f"{scheme}?{parameter}")

    assert refused.value.facts["parameter"] == parameter.partition("=")[0]


@pytest.mark.parametrize("url", ["redis://host/0", "redis+sentinel://host/mymaster", "REDIS://host"])
def test_authority_of_an_address_without_tls_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="unencrypted") as refused:
        connection(f"{url}?ssl_ca_certs=/ca.pem")

    assert "rediss://" in str(refused.value.facts["fix"])


@pytest.mark.parametrize("url", ["redis://host/abc", "redis://host/0/1", "redis://host/-1", "redis://one,two/0"])
def test_address_with_another_database_or_host_than_it_seems_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="not a URL of Redis"):
        connection(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://host",
        "rediss://:a,b@host:1/15",
        "redis://[::1]:1/",
        "unix:///run/x",
        "rediss://host?ssl_min_version=771",
    ],
)
async def test_address_of_one_redis_is_taken(url: str) -> None:
    await connection(url).close()


@pytest.mark.parametrize("password", ["hunter2/x", "hunter2#x", "hunter2?x", "hunter2%x", "12/hunter2", "hun[ter2"])
def test_password_that_is_not_encoded_is_refused_and_not_shown(password: str) -> None:
    for url in (f"redis://user:{password}@host/0", f"redis+sentinel://user:{password}@host/mymaster"):
        with pytest.raises(SetupError, match="percent-encoded") as refused:
            connection(url)

        assert password not in str(refused.value)


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
