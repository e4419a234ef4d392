"""Private servers that run while an `async with` block lasts, for the demo, the tests and the benchmarks.

No supervisor: a server that dies stays dead until a caller starts it again, as a fault test wants. The servers
end with the block, with the thread that started them, and with the process, also when that is killed.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from coditect.agent.processes.process import ProcessId
from coditect.local.child import POLL_SECONDS, Child, RunningChild, last_lines, spawn
from coditect.local.errors import StartFailed
from coditect.local.plan import WantedServers, server_children
from coditect.local.servers.binaries import find_binaries
from coditect.local.servers.ports import Addresses, keep_addresses
from coditect.local.servers.probe import flush_redis
from coditect.local.state import hold_data
from coditect.local.supervisor import guarded
from coditect.local.watchdog import new_marker

BROKER = "rabbitmq"
REDIS = "redis"


class PrivateProcesses:
    """Private servers by name, and the means to kill and restart each. Usable from any event loop."""

    def __init__(self, children: Sequence[Child], *, marker: str, folder: Path) -> None:
        self._children = {child.name: child for child in children}
        self._running: dict[str, RunningChild] = {}
        self._marker = marker
        self._folder = folder

    @property
    def processes(self) -> dict[str, ProcessId]:
        """The processes that run now, by name."""
        return {name: running.process for name, running in self._running.items() if running.exit_code is None}

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

    def __init__(self, children: Sequence[Child], *, addresses: Addresses, marker: str, folder: Path) -> None:
        super().__init__(children, marker=marker, folder=folder)
        self._addresses = addresses

    @property
    def amqp_url(self) -> str:
        """The broker's address, with the virtual host ``/``."""
        return self._addresses.amqp_url

    @property
    def management_url(self) -> str:
        """The address at which the broker's management API answers, if the API was wanted."""
        return self._addresses.management_url

    @property
    def redis_url(self) -> str:
        """The address of Redis' database 0."""
        return self._addresses.redis_url

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
        await flush_redis(self.redis_url)


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
    marker = new_marker()
    addresses = keep_addresses(folder / "servers.json")
    wanted = WantedServers(rabbitmq, redis, management)
    children = server_children(find_binaries(environ), addresses, wanted, folder=folder, environ=environ)
    servers = PrivateServers(children, addresses=addresses, marker=marker, folder=folder)
    with hold_data(folder), guarded(marker):
        try:
            await servers.start()
            yield servers
        finally:
            await servers.stop()
