from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import pytest
import redis.exceptions
import uvloop

from coditect.errors import RegistryUnavailable, SetupError
from coditect.registry.redis import VENDOR_ERRORS, RedisConnection

NEVER_RAISED_TO_US = {"IncorrectPolicyType"}
"""Raised by the cluster client's command router alone."""


def unavailable(step: str, reason: str) -> RegistryUnavailable:
    return RegistryUnavailable(reason, step=step)


def test_every_exception_of_the_vendor_is_mapped() -> None:
    exceptions = inspect.getmembers(redis.exceptions, inspect.isclass)
    unmapped = {
        name for name, member in exceptions if issubclass(member, Exception) and not issubclass(member, VENDOR_ERRORS)
    }

    assert unmapped == NEVER_RAISED_TO_US


def test_our_own_time_limit_is_mapped() -> None:
    assert issubclass(TimeoutError, VENDOR_ERRORS)


async def test_replica_that_has_lost_its_master_is_no_node_of_a_cluster() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1_000):
            writer.write(b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        connection = RedisConnection(url, timeout_seconds=5.0, unavailable=unavailable)
        with pytest.raises(SetupError, match="a replica that has lost its master") as refused:
            await connection.usable_version()
        await connection.close()

    assert "start the master" in str(refused.value.facts["fix"])


async def write_to_a_closed_connection() -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await reader.read()
        writer.transport.abort()
        await asyncio.sleep(0)
        writer.writelines([b"PING"])


async def fail() -> None:
    raise RuntimeError("a mistake of ours")


@pytest.mark.parametrize(
    ("call", "becomes"), [(write_to_a_closed_connection, RegistryUnavailable), (fail, RuntimeError)]
)
def test_connection_that_closes_amid_a_call_is_no_answer_and_a_mistake_is_a_mistake(
    call: Callable[[], Awaitable[None]], becomes: type[Exception]
) -> None:
    async def ask() -> None:
        connection = RedisConnection("redis://127.0.0.1:1/0", timeout_seconds=1.0, unavailable=unavailable)
        await connection.bounded("now", call())

    with pytest.raises(becomes):
        uvloop.run(ask())
