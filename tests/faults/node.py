"""A RabbitMQ of the fault tests' own, to kill, freeze and command."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil

from coditect.local import PrivateServers
from coditect.local.servers.binaries import find_binaries
from tests.servers import private_servers_of_run
from tests.support import eventually


class Node:
    """One private broker."""

    def __init__(self, servers: PrivateServers, folder: Path) -> None:
        self._servers = servers
        self.folder = folder / "rabbitmq"
        self.url = servers.amqp_url

    @property
    def pid(self) -> int:
        """Of the broker itself."""
        return self._servers.processes["rabbitmq"].pid

    async def kill(self) -> None:
        """With -9; returns when it is gone."""
        await self._servers.kill_broker()

    async def start(self) -> None:
        """On the same port and data; returns when it answers."""
        await self._servers.start_broker()

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

    async def write_queues_to_disk(self) -> None:
        """What the broker would do some seconds later by itself.

        A quorum queue's name reaches the disk lazily (RabbitMQ 3.10: Ra's dets tables). One that was declared
        just before a kill -9 is known to the broker afterwards, but has no process and never answers. A classic
        queue is gone, and all that it confirmed: Mnesia notes behind the answer that the transaction was decided,
        and writes the note within two seconds.
        """
        tables = "[dets:sync(Table) || Table <- dets:all()]"
        await self.evaluate(f"{tables}, sys:get_state(mnesia_recover), ok = disk_log:sync(latest_log).")

    async def evaluate(self, expression: str) -> str:
        """What an Erlang expression is worth to the broker, in a moment where its Erlang has the program for that."""
        broker = psutil.Process(self.pid)
        program, environment = Path(broker.exe()).with_name("erl_call"), broker.environ()
        if not program.exists():
            return await self.control("eval", expression)
        cookie = (self.folder / "home" / ".erlang.cookie").read_text(encoding="utf-8")
        where = ("-c", cookie, "-address", f"127.0.0.1:{environment['RABBITMQ_DIST_PORT']}")
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
def private_node(folder: Path) -> Iterator[Node]:
    """Started, and gone at the end."""
    with private_servers_of_run(folder, os.environ, redis=False) as servers:
        yield Node(servers, folder)
