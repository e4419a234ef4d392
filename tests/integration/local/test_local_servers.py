import asyncio
import os
import re
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from coditect.agent.process import is_running
from coditect.local import AlreadyUp, PrivateServers, StartFailed, private_servers
from coditect.local.probe import broker_answers, broker_version, redis_answers, redis_version
from coditect.local.servers import find_binaries


async def test_killed_servers_come_back_on_the_same_address(own_servers: PrivateServers) -> None:
    amqp_url, redis_url = own_servers.amqp_url, own_servers.redis_url
    before = own_servers.processes

    await own_servers.kill_broker()
    await own_servers.kill_redis()

    assert not await broker_answers(amqp_url)()
    assert not await redis_answers(redis_url)()
    assert not is_running(before["rabbitmq"])

    await own_servers.start_redis()
    await own_servers.start_broker()
    await own_servers.start_broker()

    assert await broker_version(amqp_url) >= "3.10"
    assert await redis_version(redis_url) >= "6.2"
    assert own_servers.processes["rabbitmq"] != before["rabbitmq"]


async def test_private_broker_is_of_the_version_whose_programs_were_found(own_servers: PrivateServers) -> None:
    found = re.search(r"rabbitmq_server-([\d.]+)", str(find_binaries(os.environ).rabbitmq))

    version = await broker_version(own_servers.amqp_url)

    assert version == (found[1] if found else version)


async def test_servers_stop_with_the_block(tmp_path: Path) -> None:
    async with private_servers(tmp_path, environ=os.environ, rabbitmq=False) as servers:
        processes = servers.processes
        await servers.stop(gently=True)
        await servers.start_redis()

    assert list(processes) == ["redis"]
    assert not any(is_running(process) for process in processes.values())
    assert not await redis_answers(servers.redis_url)()


async def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    async with private_servers(tmp_path, environ=os.environ, rabbitmq=False) as servers:
        await servers.kill_redis()
        (tmp_path / "redis" / "redis.conf").write_text("no-such-setting 1\n")

        with pytest.raises(StartFailed, match="no-such-setting"):
            await servers.start_redis()


async def test_redis_cli_takes_the_address_as_it_is(own_servers: PrivateServers) -> None:
    cli = await asyncio.create_subprocess_exec(
        "redis-cli", "-u", own_servers.redis_url, "ping", stdout=PIPE, stderr=DEVNULL
    )
    said, _ = await cli.communicate()

    assert said.strip() == b"PONG"


async def test_servers_on_a_folder_that_has_some_are_refused(tmp_path: Path) -> None:
    async with private_servers(tmp_path, environ=os.environ, rabbitmq=False):
        with pytest.raises(AlreadyUp):
            async with private_servers(tmp_path, environ=os.environ, rabbitmq=False):
                pass
