"""Which hosts a link tries, and how long it pauses between attempts."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq.connection.recovery import CLOSED, RabbitConnection, hosts_of
from coditect.broker.rabbitmq.plain import PlainPath
from coditect.errors import BrokerUnavailable


@pytest.mark.parametrize(
    ("setting", "hosts"),
    [
        ("amqp://localhost:5672/", ["amqp://localhost:5672/"]),
        ("amqp://u:p@a:5672/v,b:5673, c", ["amqp://u:p@a:5672/v", "amqp://u:p@b:5673/v", "amqp://u:p@c/v"]),
        ("amqp://a/,amqps://x:y@b:1/w", ["amqp://a/", "amqps://x:y@b:1/w"]),
        ("amqp://a/?cafile=/ca.pem,b", ["amqp://a/?cafile=/ca.pem", "amqp://b/?cafile=/ca.pem"]),
    ],
)
def test_setting_names_one_host_or_several(setting: str, hosts: list[str]) -> None:
    assert [str(host) for host in hosts_of(setting)] == hosts


async def test_pauses_grow_to_a_bound_and_differ_between_processes() -> None:
    async def nothing(_: object) -> None: ...

    links = [RabbitConnection("amqp://localhost", name=str(n), path=PlainPath(), restore=nothing) for n in range(20)]
    for link in links:
        link.last_error = ConnectionRefusedError()

    pauses = [[link._pause_seconds(failures) for failures in range(12)] for link in links]

    assert len({round(row[0], 6) for row in pauses}) > 1
    for row in pauses:
        assert row[0] <= CLOSED.first
        assert all(CLOSED.longest / 2 <= pause <= CLOSED.longest for pause in row[4:])
        assert all(later >= earlier / 2 for earlier, later in pairwise(row))


async def test_every_host_is_tried_until_one_answers_and_each_that_does_not_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[int] = []
    servers = []
    for number in range(3):

        async def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int = number) -> None:
            asked.append(number)
            writer.close()

        servers.append(await asyncio.start_server(met, "127.0.0.1", 0))
    hosts = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]

    with pytest.raises(BrokerUnavailable) as raised:
        async with AmqpBroker(f"amqp://me:secret@{','.join(hosts)}", connect_seconds=2.0):
            pass

    for server in servers:
        server.close()
    addresses = {f"amqp://{host}/" for host in hosts}
    assert set(asked) == {0, 1, 2}
    assert {vars(line)["url"] for line in caplog.records if "cannot be reached" in line.getMessage()} == addresses
    assert raised.value.facts["url"] in addresses
