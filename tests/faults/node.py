"""A RabbitMQ of the fault tests' own, to kill, freeze and command."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil

from coditect.local import PrivateServers
from tests.servers import Broker, private_servers_of_run
from tests.support import eventually


class Node(Broker):
    """One private broker."""

    def __init__(self, servers: PrivateServers, folder: Path) -> None:
        super().__init__(servers, folder)
        self.url = servers.amqp_url

    async def kill(self) -> None:
        """With -9; returns when it is gone."""
        await self.servers.kill_broker()

    async def start(self) -> None:
        """On the same port and data; returns when it answers."""
        await self.servers.start_broker()

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Stopped (SIGSTOP) for as long as the block lasts."""
        broker = psutil.Process(self.pid)
        broker.suspend()
        try:
            await eventually(self._stands_still)
            yield
        finally:
            with suppress(psutil.NoSuchProcess):  # killed meanwhile
                broker.resume()

    @asynccontextmanager
    async def silent(self, queue: str) -> AsyncIterator[None]:
        """A quorum queue that answers nothing for as long as the block lasts: its only member stands still."""
        await self.evaluate(f"sys:suspend('%2F_{queue}').")
        try:
            yield
        finally:
            await self.evaluate(f"sys:resume('%2F_{queue}').")

    def _stands_still(self) -> bool:
        """Each thread stops when it next looks up, and until then may confirm a message."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(thread.read_text().rsplit(")", 1)[1].split()[0] == "T" for thread in threads)

    @asynccontextmanager
    async def alarmed(self) -> AsyncIterator[None]:
        """With a memory alarm: the broker blocks every connection that publishes."""
        await self.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
        try:
            yield
        finally:
            await self.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")


@contextmanager
def private_node(folder: Path) -> Iterator[Node]:
    """Started, and gone at the end."""
    with private_servers_of_run(folder, os.environ, redis=False) as servers:
        yield Node(servers, folder)
