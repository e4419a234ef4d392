"""The servers of a test run: those that the environment names, else containers or private ones that the run starts.

`coditect.testing.servers` chooses and starts them. Private ones have their files below ``.coditect/test-<pid>``, beside
whatever `coditect up` runs. Tests isolate themselves by names (a vhost or a prefix of their own), never by flushing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from coditect.local import PrivateServers
from coditect.local.servers import find_binaries
from coditect.testing.servers import ServerUrls as Servers
from coditect.testing.servers import private, running_servers
from tests.broken_broker import Watched, watched

ROOT = Path(__file__).resolve().parent.parent
STARTUP = ROOT / "tests" / "startup"
"""On the path of each Python that a test starts."""
EMPTIED = """\
{Host, All, Who} = {<<"/">>, <<".*">>, <<"tests">>}, rabbit_vhost:delete(Host, Who), rabbit_vhost:add(Host, Who),
rabbit_auth_backend_internal:set_permissions(<<"coditect">>, Host, All, All, All, Who).
"""
"""Removes the broker's virtual host with all that is in it, and makes it anew."""
__all__ = ["ROOT", "STARTUP", "Servers", "breakable", "own_servers", "private_servers_of_run", "servers"]


@contextmanager
def private_servers_of_run(
    folder: Path, environ: Mapping[str, str], *, redis: bool = True, management: bool = False
) -> Iterator[PrivateServers]:
    """Private servers for a synchronous block; the folder is removed after it.

    A test that kills servers takes these rather than the run's own, which others share.
    """
    with _removed(folder), private(folder, environ, redis=redis, management=management) as servers:
        yield servers


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    """The servers of this run, started when the first test asks for them."""
    folder = _own_folder()
    with (
        _removed(folder),
        running_servers(folder=folder) as found,
        watched(pytestconfig, Watched("servers", found.amqp_url, _log(folder), f"probe-{uuid4().hex}")),
    ):
        yield found


def _log(folder: Path) -> Path:
    return folder / "log" / "rabbitmq.log"


def _own_folder() -> Path:
    return ROOT / ".coditect" / f"test-{os.getpid()}"


@pytest.fixture(scope="session")
def breakable(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ and a Redis that tests kill and restart one after the other; started for the first of them."""
    folder = tmp_path_factory.mktemp("breakable") / "servers"
    with (
        private_servers_of_run(folder, os.environ) as servers,
        watched(pytestconfig, Watched("breakable", servers.amqp_url, _log(folder))),
    ):
        yield Broker(servers, folder)


@pytest.fixture
def own_servers(breakable: Broker) -> Iterator[PrivateServers]:
    """A RabbitMQ and a Redis of this test alone, to kill and restart: both are empty."""
    yield breakable.servers
    asyncio.run(breakable.as_new())


class Broker:
    """Private servers below a folder, whose broker does what an Erlang expression says."""

    def __init__(self, servers: PrivateServers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder / "rabbitmq"

    @property
    def pid(self) -> int:
        """Of the broker itself."""
        return self.servers.processes["rabbitmq"].pid

    @property
    def was_killed(self) -> bool:
        """Whether the broker does not run."""
        return "rabbitmq" not in self.servers.processes

    async def as_new(self) -> None:
        """Both run, and nothing is in them. A start takes two seconds of a processor, this a tenth."""
        if self.was_killed:  # a queue that was new then cannot be declared again by its name, also when it was deleted
            await self.servers.wipe_broker()
        await self.servers.start_broker()
        await self.servers.start_redis()
        await self.evaluate(EMPTIED)
        await self.write_to_disk()
        await self.servers.wipe_redis()

    async def write_to_disk(self) -> None:
        """What the broker would do some seconds later by itself.

        A quorum queue's name reaches the disk lazily (RabbitMQ 3.10: Ra's dets tables). One that was declared
        just before a kill -9 is known to the broker afterwards, but has no process and never answers. A classic
        queue is gone, and all that it confirmed: Mnesia notes behind the answer that the transaction was decided,
        and writes the note within two seconds. A table that Mnesia has closed meanwhile is on the disk.
        """
        tables = "[try dets:sync(Table) catch error:badarg -> closed end || Table <- dets:all()]"
        await self.evaluate(f"{tables}, sys:get_state(mnesia_recover), ok = disk_log:sync(latest_log).")

    async def evaluate(self, expression: str) -> str:
        """What an Erlang expression is worth to the broker, in a moment where its Erlang has the program for that."""
        broker = psutil.Process(self.pid)
        program, environment = Path(broker.exe()).with_name("erl_call"), broker.environ()
        if not program.exists():
            return await self.control("eval", expression)
        cookie = (self.folder / "home" / ".erlang.cookie").read_text(encoding="utf-8")
        # Of a name of its own each time: a node refuses a second one of a name while it has not missed the first, and
        # `erl_call -r` takes the same name for a second.
        name = ("-h", f"c{uuid4().hex}")
        where = (*name, "-c", cookie, "-address", f"127.0.0.1:{environment['RABBITMQ_DIST_PORT']}")
        output = await self._said(program, *where, "-e", typed=f"{expression}\n")
        assert output.startswith("{ok, "), output
        return output.removeprefix("{ok, ").removesuffix("}")

    async def control(self, *words: str) -> str:
        """One `rabbitmqctl` command; returns what it printed. Takes about two seconds."""
        script = find_binaries(os.environ).rabbitmq
        assert script is not None
        return await self._said(script.parent / "rabbitmqctl", "--quiet", *words)

    async def _said(self, program: Path, *words: str, typed: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            program,
            *words,
            env=psutil.Process(self.pid).environ(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(typed.encode())
        assert process.returncode == 0, output.decode()
        return output.decode()


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Remove the folder after the block, and before it those of runs that were killed."""
    for other in folder.parent.glob("test-*"):
        pid = other.name.removeprefix("test-")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(other, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
