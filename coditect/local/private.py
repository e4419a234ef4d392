"""Private servers that run while an `async with` block lasts, for the demo, the tests and the benchmarks.

FoundationDB's programs are not in the package registries: they come with FoundationDB's server package, or from its
source. Its first process is the coordinator, and the cluster is not available while that process is away.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from coditect.agent.process import ProcessId
from coditect.local.errors import MissingServer, StartFailed
from coditect.local.probe import ask_redis, port_open
from coditect.local.servers import Addresses, find_binaries, free_ports, keep_addresses
from coditect.local.state import hold_data, write_atomically
from coditect.local.supervisor import POLL_SECONDS, Child, RunningChild, guarded, last_lines, spawn
from coditect.local.up import WantedServers, server_children
from coditect.local.watchdog import new_marker

BROKER = "rabbitmq"
REDIS = "redis"


class PrivateProcesses:
    """Private servers by name, and the means to kill and restart each. Usable from any event loop."""

    def __init__(self, children: Sequence[Child], *, folder: Path) -> None:
        self._children = {child.name: child for child in children}
        self._running: dict[str, RunningChild] = {}
        self._marker = new_marker()
        self._folder = folder

    @property
    def processes(self) -> dict[str, ProcessId]:
        """The processes that run now, by name."""
        return {name: running.process for name, running in self._running.items() if running.exit_code is None}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Start every private server, with its files in the folder, and kill them all at the end of the block.

        Raises:
            StartFailed: one of them died or was not ready in time; nothing is left running.
            AlreadyUp: other servers run on the folder; two brokers on one folder destroy each other's files.
        """
        with hold_data(self._folder), guarded(self._marker):
            try:
                await self.start()
                yield self
            finally:
                await self.stop()

    async def start(self) -> None:
        """Start every private server, and return when all are ready.

        Raises:
            StartFailed: one of them died or was not ready in time.
        """
        by_stage = sorted(self._children.values(), key=lambda child: child.stage)
        for child in by_stage:
            await self.start_one(child.name)

    async def stop(self, *, gently: bool = False) -> None:
        """Stop every private server: by SIGKILL, or `gently`, with time for each to close its files."""
        for name, running in reversed(self._running.items()):
            if gently:
                await running.stop()
            else:
                await self.kill(name)

    async def kill(self, name: str) -> None:
        """Kill a server with SIGKILL, if it runs, and return when its process is gone."""
        running = self._running.get(name)
        if running is not None:
            await asyncio.to_thread(running.kill)

    async def start_one(self, name: str) -> None:
        """Start a server, unless it runs, on the same data and port, and return when it is ready.

        Raises:
            StartFailed: it died or was not ready in time.
        """
        running = self._running.get(name)
        if running is not None and running.exit_code is None:
            return
        child = self._children[name]
        running = spawn(child, marker=self._marker, log_folder=self._folder / "log")
        self._running[name] = running
        deadline = time.monotonic() + child.ready_within_seconds
        while child.ready is None or not await child.ready():
            if running.exit_code is not None or time.monotonic() > deadline:
                await self.kill(name)
                raise StartFailed(
                    "A server could not be started",
                    program=name,
                    exit_code=running.exit_code,
                    log=last_lines(running.log),
                )
            await asyncio.sleep(POLL_SECONDS)


class PrivateServers(PrivateProcesses):
    """A private RabbitMQ and Redis: the processes ``epmd``, ``rabbitmq`` and ``redis``."""

    def __init__(self, children: Sequence[Child], *, addresses: Addresses, folder: Path) -> None:
        super().__init__(children, folder=folder)
        self.amqp_url = addresses.amqp_url
        """The broker's address, with the virtual host ``/``."""
        self.management_url = addresses.management_url
        """The address at which the broker's management API answers, if the API was wanted."""
        self.redis_url = addresses.redis_url
        """The address of Redis' database 0."""

    async def kill_broker(self) -> None:
        """Kill the broker with SIGKILL, and return when its process is gone."""
        await self.kill(BROKER)

    async def start_broker(self) -> None:
        """Start the broker again on the same data and port, and return when it opens a handshake.

        Raises:
            StartFailed: it died or was not ready in time.
        """
        await self.start_one(BROKER)

    async def kill_redis(self) -> None:
        """Kill Redis with SIGKILL, and return when its process is gone."""
        await self.kill(REDIS)

    async def start_redis(self) -> None:
        """Start Redis again on the same data and port, and return when it answers.

        Raises:
            StartFailed: it died or was not ready in time.
        """
        await self.start_one(REDIS)

    async def wipe_broker(self) -> None:
        """Kill the broker with SIGKILL and remove its data (queues, messages, users); it is empty at its next start."""
        await self.kill(BROKER)
        await asyncio.to_thread(shutil.rmtree, self._folder / BROKER / "data", ignore_errors=True)

    async def wipe_redis(self) -> None:
        """Remove everything from the running Redis.

        Raises:
            ServerUnreachable: it does not answer.
        """
        await ask_redis(
            self.redis_url, lambda asked: asked.bounded("flush", asked.redis.flushall()), within_seconds=10.0
        )


@asynccontextmanager
async def private_servers(
    folder: Path,
    *,
    environ: Mapping[str, str],
    rabbitmq: bool = True,
    redis: bool = True,
    management: bool = False,
) -> AsyncIterator[PrivateServers]:
    """Start private servers with all their files below `folder`, and kill them at the end of the block.

    The data stays in the folder; the same folder again gives the same ports, queues and keys. With `management` the
    broker serves its management API.

    Raises:
        MissingServer: one that is wanted is not installed.
        StartFailed: one died or was not ready in time; nothing is left running.
        AlreadyUp: other servers run on this folder; two brokers on one folder destroy each other's files.
    """
    addresses = keep_addresses(folder / "servers.json")
    wanted = WantedServers(rabbitmq, redis, management)
    children = server_children(find_binaries(environ), addresses, wanted, folder=folder, environ=environ)
    async with PrivateServers(children, addresses=addresses, folder=folder).running() as servers:
        yield servers


MORE_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/libexec", "/usr/bin", "/usr/local/bin")
INSTALL = "Install the server package of FoundationDB 7.3, or add the folder of its fdbserver to PATH"
AVAILABLE_SECONDS = 60.0
COMMAND_SECONDS = 10
COUNTED_SECONDS = 30.0
FDB_POLL_SECONDS = 0.2
KNOBS = ("knob_commit_transaction_batch_interval_from_idle=0",)
"""The server's settings that differ from its defaults, as the manifests of Kubernetes have them, too.

An idle FoundationDB lets a commit wait half a millisecond for others. A dispatcher has its changes in one transaction
already, and the next task of a chain waits for its end.
"""
_MEMORY = ("--memory", "2GiB", "--cache-memory", "200MiB")


@dataclass(frozen=True, slots=True)
class FoundationDBPrograms:
    """The paths of FoundationDB's programs: the server `fdbserver`, and the command line `fdbcli`."""

    server: Path
    cli: Path


def find_foundationdb(environ: Mapping[str, str]) -> FoundationDBPrograms | None:
    """Return the paths of FoundationDB's server and command line; None unless both are installed.

    They are looked for on PATH and in the usual folders; `fdbcli` first beside the server.
    """
    folders = os.pathsep.join([environ.get("PATH", ""), *MORE_FOLDERS])
    server = shutil.which("fdbserver", path=folders)
    if server is None:
        return None
    cli = shutil.which("fdbcli", path=os.pathsep.join([str(Path(server).parent), folders]))
    return FoundationDBPrograms(Path(server), Path(cli)) if cli else None


class PrivateFoundationDB(PrivateProcesses):
    """A private FoundationDB cluster; its processes are ``fdb-1`` (the coordinator), ``fdb-2`` and so on."""

    coordinator = "fdb-1"

    def __init__(self, children: Sequence[Child], *, cli: Path, cluster_file: Path, address: str, folder: Path) -> None:
        super().__init__(children, folder=folder)
        self.cluster_file = cluster_file
        """The file by which a client finds the cluster."""
        self._cli = cli
        self._address = address

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all processes, also of those that do not run."""
        return tuple(self._children)

    async def start(self) -> None:
        """Start every process of a new cluster, create its database, and return when the database is available.

        Three processes or more keep each key twice.

        Raises:
            StartFailed: a process died, or the database is not available in time.
        """
        write_atomically(self.cluster_file, self._address)
        await super().start()
        copies = "double" if len(self._children) >= 3 else "single"
        output = ""
        deadline = time.monotonic() + AVAILABLE_SECONDS
        while "is available" not in await self.command("status minimal"):
            if time.monotonic() > deadline:
                raise StartFailed("The private FoundationDB is not available", log=output)
            output = await self.command(f"configure new {copies} ssd")
            await asyncio.sleep(FDB_POLL_SECONDS)

    async def command(self, line: str) -> str:
        """Run a command of `fdbcli` on the cluster, and return its output, whether or not it succeeded."""
        process = await asyncio.create_subprocess_exec(
            *(self._cli, "-C", self.cluster_file, "--timeout", str(COMMAND_SECONDS), "--exec", line),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return output.decode(errors="replace")

    async def transactions(self) -> dict[str, int]:
        """Return how many transactions were started, committed and conflicted since the cluster began.

        FoundationDB publishes its counters every five seconds, so this waits until they have moved: the question
        itself is counted, too.

        Raises:
            StartFailed: the cluster does not say it, or its counters stand still.
        """
        before, deadline = await self._counted(), time.monotonic() + COUNTED_SECONDS
        while (counted := await self._counted()) == before:
            if time.monotonic() > deadline:
                raise StartFailed("The private FoundationDB's counters stand still", log=str(counted))
            await asyncio.sleep(FDB_POLL_SECONDS)
        return counted

    async def _counted(self) -> dict[str, int]:
        output = await self.command("status json")
        try:
            counted: dict[str, Any] = json.loads(output[output.index("{") :])["cluster"]["workload"]["transactions"]
            return {name: int(counted[name]["counter"]) for name in ("started", "committed", "conflicted")}
        except (ValueError, KeyError) as error:
            raise StartFailed("The private FoundationDB does not count its transactions", log=output[-500:]) from error


@asynccontextmanager
async def private_foundationdb(
    folder: Path, *, environ: Mapping[str, str], processes: int = 1
) -> AsyncIterator[PrivateFoundationDB]:
    """Start a new FoundationDB cluster with all files below `folder`, and kill it at the end of the block.

    Raises:
        MissingServer: FoundationDB's programs are not installed.
        StartFailed: a process died, or the database is not available in time; nothing is left running.
        AlreadyUp: another cluster runs on this folder.
    """
    programs = find_foundationdb(environ)
    if programs is None:
        raise MissingServer("FoundationDB is not installed", fix=INSTALL)
    cluster_file = folder / "fdb.cluster"
    ports = free_ports(processes)
    children = [
        _child(programs.server, f"fdb-{number}", port, cluster_file, folder=folder, environ=environ)
        for number, port in enumerate(ports, 1)
    ]
    address = f"private:{secrets.token_hex(8)}@127.0.0.1:{ports[0]}\n"
    cluster = PrivateFoundationDB(children, cli=programs.cli, cluster_file=cluster_file, address=address, folder=folder)
    async with cluster.running():
        yield cluster


def _child(
    server: Path, name: str, port: int, cluster_file: Path, *, folder: Path, environ: Mapping[str, str]
) -> Child:
    data, logs = folder / name, folder / "log" / name
    for subfolder in (data, logs):
        subfolder.mkdir(parents=True, exist_ok=True)
    place = ("--locality-zoneid", name, "--locality-machineid", name)  # copies of a key lie in different places
    files = ("-d", str(data), "-L", str(logs), "-C", str(cluster_file))
    knobs = (f"--{knob}" for knob in KNOBS)
    return Child(
        name=name,
        argv=(str(server), "-p", f"127.0.0.1:{port}", *files, *place, *_MEMORY, *knobs),
        env=dict(environ),
        folder=folder,
        ready=port_open(port),
    )
