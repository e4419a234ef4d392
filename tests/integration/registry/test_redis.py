"""What only the Redis adapter has: keys, scripts, connections and their failures."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from coditect.errors import RegistryUnavailable, SetupError
from coditect.model.ids import AgentId
from coditect.registry.document import KEYS
from coditect.registry.port import GONE_SECONDS, MOST_GONE, MOST_GONE_BYTES, Search
from coditect.registry.redis import RedisRegistry
from tests.integration.registry.private_redis import PrivateRedis
from tests.support import eventually
from tests.unit.registry.samples import IDLE, make_registration

pytestmark = pytest.mark.servers
A = AgentId("reviewer-0000000a")
EVERY_CALL: tuple[Callable[[RedisRegistry], Awaitable[object]], ...] = (
    lambda registry: registry.register(make_registration(), IDLE, lease_seconds=3),
    lambda registry: registry.renew(A, IDLE, lease_seconds=3),
    lambda registry: registry.deregister(A),
    lambda registry: registry.find(Search()),
    lambda registry: registry.get(A),
    lambda registry: registry.gone(),
    lambda registry: registry.capabilities(),
    lambda registry: registry.next_turn("x"),
)


async def test_every_call_to_a_server_that_refuses_the_connection_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        async with RedisRegistry(f"redis://127.0.0.1:{taken.getsockname()[1]}/0") as registry:
            for call in EVERY_CALL:
                with pytest.raises(RegistryUnavailable) as raised:
                    await call(registry)

                assert isinstance(raised.value.__cause__, RedisError)
                assert raised.value.retryable


async def test_every_call_to_a_silent_server_is_unavailable_within_one_second() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with RedisRegistry(f"redis://127.0.0.1:{silent.getsockname()[1]}/0") as registry:
            started = asyncio.get_running_loop().time()
            ended = await asyncio.gather(*(call(registry) for call in EVERY_CALL), return_exceptions=True)

    assert {type(one) for one in ended} == {RegistryUnavailable}
    assert asyncio.get_running_loop().time() - started < 10


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-7\r\n", b"\xff\xfe\r\n", b"*1\r\n:x\r\n", b""]
)
async def test_server_that_speaks_something_else_is_unavailable(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with RedisRegistry(f"redis://127.0.0.1:{port}/0") as registry:
            with pytest.raises(RegistryUnavailable):
                await registry.find(Search())


async def test_refused_password_is_unavailable_and_says_why(server: PrivateRedis, client: Redis) -> None:
    await client.config_set("requirepass", "secret")

    async with RedisRegistry(server.url) as registry:
        with pytest.raises(RegistryUnavailable, match="Authentication"):
            await registry.find(Search())


async def test_keys_of_another_kind_are_unavailable(registry: RedisRegistry, client: Redis) -> None:
    await client.set("coditect:leases", "x")

    with pytest.raises(RegistryUnavailable, match="WRONGTYPE"):
        await registry.find(Search())


async def test_agents_stay_registered_when_the_memory_is_full_and_turns_are_unavailable(
    registry: RedisRegistry, client: Redis
) -> None:
    await client.config_set("maxmemory", "1")

    await registry.register(make_registration(), IDLE, lease_seconds=30)

    assert await registry.renew(A, IDLE, lease_seconds=30)
    assert await registry.get(A) is not None
    with pytest.raises(RegistryUnavailable, match="OutOfMemory"):
        await registry.next_turn("x")


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://x/", "redis://:hush@host:port/0"])
def test_url_that_is_none_is_a_setup_error_without_its_password(url: str) -> None:
    with pytest.raises(SetupError) as raised:
        RedisRegistry(url)

    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None or raised.value.__suppress_context__  # no traceback shows what it came from
    assert "hush" not in str(raised.value)


async def test_scripts_connections_and_loads_that_are_lost_come_back_without_a_failure(
    registry: RedisRegistry, client: Redis
) -> None:
    await registry.register(make_registration(), IDLE, lease_seconds=30)

    await client.script_flush()

    assert await registry.renew(A, IDLE, lease_seconds=30)

    await registry.register(make_registration(), IDLE, lease_seconds=30)
    await client.delete("coditect:loads")

    assert await registry.get(A) is None
    assert await registry.renew(A, IDLE, lease_seconds=30)

    assert await registry.get(A) is not None

    await asyncio.gather(*(registry.next_turn("x") for _ in range(20)))

    await client.client_kill_filter(_type="normal", skipme=True)

    assert await registry.next_turn("x") >= 21


async def test_answer_that_came_too_late_is_not_taken_for_another(registry: RedisRegistry, client: Redis) -> None:
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    await client.client_pause(3_000)
    calls = (registry.next_turn("x"), registry.capabilities(), registry.get(A), registry.find(Search()))

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {RegistryUnavailable}

    async def answers() -> bool:
        try:
            return await registry.capabilities() == {"code.review"}
        except RegistryUnavailable:
            return False

    await eventually(answers)
    assert isinstance(await registry.next_turn("x"), int)


@pytest.mark.parametrize("lost", [key for key in KEYS if key not in ("loads", "gone")])
async def test_agent_that_lost_any_key_is_told_to_register_again(
    registry: RedisRegistry, client: Redis, lost: str
) -> None:
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    await client.delete(f"coditect:{lost}")
    await registry.register(make_registration("other-0000000b"), IDLE, lease_seconds=30)

    renewed = await registry.renew(A, IDLE, lease_seconds=30)

    assert not renewed
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    assert len(await registry.find(Search(capability="code.review"))) == 2
    assert await registry.renew(A, IDLE, lease_seconds=30)


async def test_keys_live_as_long_as_the_longest_lease_and_a_day(registry: RedisRegistry, client: Redis) -> None:
    for agent_id in ("a-1", "b-2", "c-3"):
        await registry.register(make_registration(agent_id), IDLE, lease_seconds=30)
    await registry.deregister(AgentId("a-1"))
    await registry.renew(AgentId("b-2"), IDLE, lease_seconds=30)

    lives = {key: await client.pttl(key) for key in await client.keys()}

    assert len(lives) == len(KEYS)
    assert all(0 < life <= 1000 * (GONE_SECONDS + 30) for life in lives.values())

    await registry.register(make_registration(), IDLE, lease_seconds=60)

    await registry.register(make_registration("other-0000000b"), IDLE, lease_seconds=1)

    longer = [await client.pttl(f"coditect:{key}") for key in KEYS if key != "gone"]
    assert all(life > 50_000 for life in longer)


async def test_lapsed_agent_leaves_its_last_record_for_a_day(registry: RedisRegistry, client: Redis) -> None:
    await registry.register(make_registration("other-0000000b"), IDLE, lease_seconds=30)
    size = await sizes(client)
    await registry.register(make_registration(), IDLE, lease_seconds=0.1)
    assert await sizes(client) != size

    async def lapsed() -> bool:
        return [record.agent_id for record in await registry.gone()] == [A]

    await eventually(lapsed)
    left = await sizes(client)
    await client.zincrby("coditect:gone", -1000 * GONE_SECONDS, A)
    await registry.renew(AgentId("other-0000000b"), IDLE, lease_seconds=30)

    assert [now - before for now, before in zip(left, size, strict=True)] == [0, 1, 1, 0, 0, 1]
    assert await sizes(client) == size


async def test_gone_agents_with_large_schemas_do_not_make_an_answer_too_large(registry: RedisRegistry) -> None:
    ids = [AgentId(f"reviewer-{number:08x}") for number in range(4)]
    for agent_id in ids:
        large = replace(make_registration(agent_id), metadata={"text": "x" * (MOST_GONE_BYTES // 3)})
        await registry.register(large, IDLE, lease_seconds=30)
        await registry.deregister(agent_id)

    assert len(await registry.gone()) == 2
    assert [len(await registry.gone(agent_id)) for agent_id in ids] == [1] * 4


async def test_no_more_than_the_latest_of_the_gone_are_kept(registry: RedisRegistry, client: Redis) -> None:
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    await registry.deregister(A)
    later = time.time() * 1000
    await client.zadd("coditect:gone", {f"later-{number}": later + 60_000 for number in range(MOST_GONE)})

    assert await registry.gone(A) == ()
    assert await client.zcard("coditect:gone") == MOST_GONE
    assert await client.hlen("coditect:registrations") == 0


async def test_every_key_begins_with_the_prefix(server: PrivateRedis, client: Redis) -> None:
    async with RedisRegistry(server.url, prefix="{mine}:") as registry:
        await registry.register(make_registration(), IDLE, lease_seconds=30)
        await registry.next_turn("x")

    keys = await client.keys()

    assert len(keys) == len(KEYS), "all but those of agents that went away, and the turns"
    assert all(str(key).startswith("{mine}:") for key in keys)


async def test_unreadable_entry_is_left_out_with_a_warning(
    registry: RedisRegistry, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    await registry.register(make_registration("other-0000000b"), IDLE, lease_seconds=30)

    await client.hset("coditect:registrations", A, "{}")

    assert [record.agent_id for record in await registry.find(Search())] == ["other-0000000b"]
    assert [(record.levelno, record.name) for record in caplog.records] == [
        (logging.WARNING, "coditect.registry.redis")
    ]


async def test_find_is_one_round_trip(registry: RedisRegistry, client: Redis) -> None:
    for number in range(50):
        await registry.register(make_registration(f"agent-{number:08x}"), IDLE, lease_seconds=30)
    await registry.find(Search(capability="code.review"))
    await client.config_resetstat()

    found = await registry.find(Search(capability="code.review", keyword="python"))

    calls = {name: stats["calls"] for name, stats in (await client.info("commandstats")).items()}
    assert len(found) == 50
    assert calls["cmdstat_evalsha"] == 1
    assert "cmdstat_keys" not in calls
    assert "cmdstat_scan" not in calls


async def sizes(client: Redis) -> list[int]:
    return [
        await client.zcard("coditect:leases"),
        await client.hlen("coditect:registrations"),
        await client.hlen("coditect:loads"),
        await client.hlen("coditect:terms"),
        await client.zcard("coditect:index"),
        await client.zcard("coditect:gone"),
    ]
