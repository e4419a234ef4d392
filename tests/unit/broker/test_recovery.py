"""Which hosts a connection tries, how long it pauses between attempts, and how often it looks at a silent one."""

from __future__ import annotations

import asyncio
import socket
import tomllib
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import pytest
from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import ConnectionInternalError

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.rabbitmq import connection as recovery
from coditect.broker.rabbitmq.channels import TESTED_AIORMQ, open_channel
from coditect.broker.rabbitmq.connection import (
    BROKER_CONNECT_SECONDS,
    CONNECTION_CHECK_SECONDS,
    GREETED_SECONDS,
    LASTED_SECONDS,
    PROBE_ANSWER_SECONDS,
    QUIET_SECONDS,
    UNREACHABLE_BACKOFF,
    RabbitConnection,
    hosts_of,
)
from coditect.broker.rabbitmq.stream import LivenessProbe
from coditect.cli.terminal.failure import describe
from coditect.errors import BrokerUnavailable, SetupError
from tests.servers import ROOT
from tests.unit.broker.virtual_time import in_virtual_time


@pytest.mark.parametrize(
    ("setting", "hosts"),
    [
        ("amqp://localhost:5672/", ["amqp://localhost:5672/"]),
        ("amqp://u:p@a:5672/v,b:5673, c", ["amqp://u:p@a:5672/v", "amqp://u:p@b:5673/v", "amqp://u:p@c/v"]),
        ("amqps://a/,amqps://x:y@b:1/w", ["amqps://a/", "amqps://x:y@b:1/w"]),
        ("amqps://a/?cafile=/ca.pem,b", ["amqps://a/?cafile=/ca.pem", "amqps://b/?cafile=/ca.pem"]),
    ],
)
def test_setting_names_one_host_or_several(setting: str, hosts: list[str]) -> None:
    assert [str(host) for host in hosts_of(setting)] == hosts


@pytest.mark.parametrize(
    "setting",
    [
        "amqp://user:hunter2/pass@host/",
        "amqp://user:hunter2#pass@host/",
        "amqp://user:hunter2?pass@host/",
        "amqp://user:hunter2%pass@host/",
        "amqp://user:hunter2%@host/",
        "amqp://user:12/hunter2@host",
        "amqp://user:hunter2,pass@host/",
        "amqp://user:5,hunter2@host/",
        "amqp://user:[hunter2@host/",
        "amqp://user:hunter2 pass@host/",
        "amqp://user:hunter2@host:port/",
        "http://user:hunter2@host/",
        "user:hunter2@host",
        "",
    ],
)
def test_url_that_can_be_misread_is_refused_without_its_password(setting: str) -> None:
    with pytest.raises(SetupError) as refused:
        RabbitConnection(setting, name="one", restore=nothing)

    assert "hunter2" not in "".join(traceback.format_exception(refused.value)).replace(setting, "")
    assert "hunter2" not in describe(refused.value)
    assert "CODITECT_AMQP_URL" in describe(refused.value)


@pytest.mark.parametrize("value", ["", "=", "=false", "=0", "=1"])
@pytest.mark.parametrize("setting", ["amqps://host/?no_verify_ssl{}", "amqps://one/,amqps://two/?no_verify_ssl{}"])
def test_url_cannot_turn_verification_off(setting: str, value: str) -> None:
    with pytest.raises(SetupError, match="always verified") as refused:
        hosts_of(setting.format(value))

    assert refused.value.facts["parameter"] == "no_verify_ssl"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("amqp://host/?cafile=/ca.pem", "unencrypted"),
        ("amqps://one/,amqp://two/", "Some addresses"),
        ("amqp://one/,amqps://two/", "Some addresses"),
    ],
)
def test_url_that_leaves_a_connection_unencrypted_by_mistake_is_refused(setting: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence) as refused:
        hosts_of(setting)

    assert "amqps://" in str(refused.value.facts["fix"])


@pytest.mark.parametrize("host", ["a..b", ".", f"{'a' * 64}.example", "one,a..b:5672"])
def test_host_that_cannot_be_looked_up_is_refused(host: str) -> None:
    with pytest.raises(SetupError, match="host") as refused:
        hosts_of(f"amqp://user:hunter2@{host}/")

    assert "hunter2" not in str(refused.value)


def test_certificate_that_is_not_hexadecimal_is_refused() -> None:
    hosts_of("amqps://host/?cadata=00fF")
    with pytest.raises(SetupError, match="hexadecimal"):
        hosts_of("amqps://host/?cadata=zz")


@pytest.mark.parametrize("parameter", ["name=me", "verify=none", "cafiles=x"])
def test_unknown_parameter_is_refused_by_name(parameter: str) -> None:
    with pytest.raises(SetupError, match="unknown parameter") as refused:
        hosts_of(f"amqp://host/?{parameter}")

    assert refused.value.facts["parameter"] == parameter.partition("=")[0]


@pytest.mark.parametrize("seconds", ["1", "61", "1e1", "", "²"])
def test_heartbeat_outside_of_its_range_is_refused(seconds: str) -> None:
    RabbitConnection("amqp://host/?heartbeat=60", name="a", restore=nothing)
    with pytest.raises(SetupError, match="heartbeat") as refused:
        RabbitConnection(f"amqp://host/?heartbeat={seconds}", name="a", restore=nothing)

    assert refused.value.facts["variable"] == "CODITECT_AMQP_URL"


def test_password_that_is_encoded_is_taken() -> None:
    (url,) = hosts_of("amqps://user:p%2Fa%40s%25s@host/v%2Fh?cafile=/ca.pem")

    assert (url.password, url.host, url.query["cafile"]) == ("p/a@s%s", "host", "/ca.pem")


async def nothing(_: object) -> None: ...


@asynccontextmanager
async def running(link: RabbitConnection) -> AsyncIterator[None]:
    """Connects in the background, until the block ends."""
    task = asyncio.create_task(link.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_pauses_grow_to_a_bound_and_differ_between_processes() -> None:
    links = [RabbitConnection("amqp://localhost", name=str(n), restore=nothing) for n in range(20)]
    for link in links:
        link.last_error = ConnectionRefusedError()

    pauses = [[link._pause_seconds(failures) for failures in range(12)] for link in links]

    assert len({round(row[0], 6) for row in pauses}) > 1
    for row in pauses:
        assert row[0] <= UNREACHABLE_BACKOFF.first
        assert all(UNREACHABLE_BACKOFF.longest / 2 <= pause <= UNREACHABLE_BACKOFF.longest for pause in row[4:])
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


async def test_frozen_host_is_passed_over_long_before_a_slow_one_would_be_given_up() -> None:
    """A frozen process's kernel takes the connection, and nobody answers on it."""
    with socket.create_server(("127.0.0.1", 0)) as frozen, socket.create_server(("127.0.0.1", 0)) as other:
        hosts = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in (frozen, other))
        link = RabbitConnection(f"amqp://{hosts}", name="a", restore=nothing)
        with patch.object(recovery, "GREETED_SECONDS", 0.05):
            async with asyncio.timeout(BROKER_CONNECT_SECONDS - 1):
                opened = await link._open()

    assert (opened, type(link.last_error)) == (None, TimeoutError)


@in_virtual_time
async def test_hosts_that_are_all_slow_are_connected_to_in_the_second_round() -> None:
    link = Answering("amqp://one,two", name="a", restore=nothing)

    with patch.object(recovery, "_Connection", Slow):
        async with running(link):
            await link.first(15.0)

    assert link.last_error is None


class Greeted:
    """A connection that was opened, and answers nothing from then on."""

    server_properties: dict[str, object] = {}  # noqa: RUF012 - never written
    closed = False

    def __init__(self, *_: object, **__: object) -> None: ...

    def __getattr__(self, _: str) -> None:
        """Have every other part of aiormq's connection."""

    async def connect(self) -> None: ...

    async def close(self) -> None:
        Greeted.closed = True


class Unanswered(RabbitConnection):
    async def _new_probe(self, connection: AbstractConnection) -> LivenessProbe:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


@in_virtual_time
async def test_connection_whose_first_probe_is_not_answered_is_given_up_in_time() -> None:
    link = Unanswered("amqp://localhost", name="a", restore=nothing)
    began = asyncio.get_running_loop().time()

    with patch.object(recovery, "_Connection", Greeted):
        opened = await link._open()

    assert (opened, Greeted.closed, type(link.last_error)) == (None, True, TimeoutError)
    assert asyncio.get_running_loop().time() - began <= BROKER_CONNECT_SECONDS + 0.01


class Truncated(Greeted):
    """A connection of an aiormq that works in another way."""

    def __getattr__(self, name: str) -> None:
        if name in {"closing", "write_queue"}:
            raise AttributeError


async def test_library_that_lacks_what_the_frames_rely_on_is_a_wrong_set_up() -> None:
    link = RabbitConnection("amqp://localhost", name="a", restore=nothing)

    with patch.object(recovery, "_Connection", Truncated):
        async with running(link):
            with pytest.raises(SetupError, match="aiormq lacks") as refused:
                await link.first(30)

    assert refused.value.facts["missing"] == "closing, write_queue"
    assert refused.value.facts["fix"] == f"pip install 'aiormq{TESTED_AIORMQ}'"


async def test_channel_of_the_library_that_lacks_a_part_is_a_wrong_set_up() -> None:
    opened = Mock(spec=Channel)
    del opened.basic_qos
    connection: Any = Mock(channel=AsyncMock(return_value=opened))

    with pytest.raises(SetupError, match="aiormq lacks") as refused:
        await open_channel(connection)

    assert "basic_qos" in str(refused.value.facts["missing"])


def test_versions_of_the_library_that_are_tested_are_those_that_the_package_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert f"aiormq{TESTED_AIORMQ}" in project["dependencies"]


class Silent:
    """A connection, its transport and its probe in one, none of which the broker answers for now."""

    is_closed = False
    silent_seconds = QUIET_SECONDS + 0.1

    def __init__(self) -> None:
        self.closing = asyncio.get_running_loop().create_future()
        self.probes = 0

    async def ready(self) -> None:
        """Return: there is no alarm."""

    def send(self) -> asyncio.Future[bool]:
        self.probes += 1
        return asyncio.get_running_loop().create_future()


@in_virtual_time
async def test_connection_that_was_silent_is_looked_at_often_until_it_speaks() -> None:
    link, silent = RabbitConnection("amqp://localhost", name="a", restore=nothing), Silent()
    parts: Any = silent
    link._connection = link._transport = link._probe = parts
    watching = asyncio.create_task(link._until_lost(parts))

    await asyncio.sleep(CONNECTION_CHECK_SECONDS + PROBE_ANSWER_SECONDS + 0.01)
    assert (link.answering, silent.probes) == (False, 1)
    silent.silent_seconds = 0.0  # a connection that was never silent would be looked at in QUIET_SECONDS again
    await asyncio.sleep(CONNECTION_CHECK_SECONDS)

    assert link.answering
    silent.closing.set_result(None)
    await watching


class Ended(Greeted):
    """A connection that the broker ends some seconds after it was opened."""

    is_closed = False
    lasts = 0.0
    opened = 0

    async def connect(self) -> None:
        type(self).opened += 1
        loop = asyncio.get_running_loop()
        self.closing = loop.create_future()
        loop.call_later(self.lasts, self.closing.set_exception, ConnectionInternalError(541, "INTERNAL_ERROR"))

    async def ready(self) -> None:
        """Return: there is no alarm."""


class Slow(Ended):
    """A connection whose host sends nothing before the TLS handshake has ended, which takes long."""

    lasts = 1_000.0

    async def connect(self) -> None:
        await asyncio.sleep(GREETED_SECONDS + 1.0)
        await super().connect()


class Answering(RabbitConnection):
    async def _new_probe(self, connection: AbstractConnection) -> LivenessProbe:
        answered: Any = asyncio.get_running_loop().create_future()
        answered.set_result(True)
        return Mock(send=lambda: answered)


@pytest.mark.parametrize(("lasts", "at_least", "at_most"), [(0.05, 10, 60), (LASTED_SECONDS + 0.5, 39, 41)])
@in_virtual_time
async def test_connection_that_ends_at_once_is_opened_again_with_pauses_and_its_end_is_said(
    lasts: float, at_least: int, at_most: int, caplog: pytest.LogCaptureFixture
) -> None:
    link = Answering("amqp://localhost", name="a", restore=nothing)
    ended: Any = type("Ended", (Ended,), {"lasts": lasts})

    with patch.object(recovery, "_Connection", ended):
        async with running(link):
            await asyncio.sleep(59.7)  # no connection ends at this instant, unseen by the link

    assert at_least <= ended.opened <= at_most
    assert "INTERNAL_ERROR" in vars(next(one for one in caplog.records if "was lost" in one.getMessage()))["reason"]


@pytest.mark.parametrize("parameter", ["cafile={}/missing.pem", "cafile={}/empty.pem", "certfile={}/missing.pem"])
async def test_certificate_that_cannot_be_read_is_a_wrong_set_up(parameter: str, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    url = f"amqps://user:hunter2@127.0.0.1:1/?{parameter.format(tmp_path)}"
    link = RabbitConnection(url, name="one", restore=nothing)
    async with running(link):
        with pytest.raises(SetupError, match="certificate or key") as refused:
            await link.first(30)

    assert "hunter2" not in describe(refused.value)
