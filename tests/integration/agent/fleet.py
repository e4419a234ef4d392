"""Agent processes on real servers, and what they did."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.errors import ResultTimeout
from coditect.local import PrivateServers
from coditect.settings.settings import Settings
from tests.programs import Program, begin
from tests.support import eventually, whole_lines

AGENT = Path(__file__).with_name("fleet_agent.py")
READY_SECONDS = 60.0
"""A process on a busy machine begins slowly."""


@dataclass(slots=True)
class Fleet:
    """Agent processes of one test; none outlives it."""

    servers: PrivateServers
    folder: Path
    processes: list[Program] = field(default_factory=list)

    @property
    def effect_log(self) -> Path:
        return self.folder / "effects"

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "CODITECT_AMQP_URL": self.servers.amqp_url,
            "CODITECT_REDIS_URL": self.servers.redis_url,
            "EFFECT_LOG": str(self.effect_log),
            **more,
        }

    async def start(self, *arguments: str, target: str = str(AGENT), **more: str) -> Program:
        """Another agent process, at work when this returns."""
        return await self.run("coditect", "agent", "run", target, *arguments, **more)

    async def run(self, *module_and_arguments: str, **more: str) -> Program:
        """Another process, at work when this returns."""
        return await self.ready(self.begin(*module_and_arguments, **more))

    async def ready(self, process: Program) -> Program:
        """The process, at work when this returns."""
        ready = self.folder / f"ready-{self.processes.index(process) + 1}"
        await eventually(lambda: ready.exists() or process.poll() is not None, seconds=READY_SECONDS)
        assert ready.exists(), f"it ended with {process.returncode} before it was ready: {self.log(process)}"
        return process

    def begin(self, module: str, *arguments: str, **more: str) -> Program:
        """Another process, just begun: it may end before it is at work."""
        number = len(self.processes) + 1
        environment = self.environment(CODITECT_READY_FILE=str(self.folder / f"ready-{number}"), **more)
        process = begin(module, *arguments, environment=environment, errors=self.folder / f"agent-{number}.log")
        self.processes.append(process)
        return process

    async def api(self, **more: str) -> tuple[Program, str]:
        """The HTTP API at a free port, at work when this returns, and its address."""
        process = await self.run("coditect", "api", "--port", "0", **more)
        return process, (self.folder / f"ready-{self.processes.index(process) + 1}").read_text()

    async def coditect(self, *words: str, **more: str) -> str:
        """What a command prints, which succeeds."""
        number = len(self.processes) + 1
        output, errors = self.folder / f"command-{number}.out", self.folder / f"agent-{number}.log"
        process = begin("coditect", *words, environment=self.environment(**more), errors=errors, output=output)
        self.processes.append(process)
        code = await asyncio.to_thread(process.wait, READY_SECONDS)
        assert code == 0, (words, errors.read_text())
        return output.read_text()

    def log(self, process: Program) -> str:
        """What the process logged."""
        return "\n".join(whole_lines(self.folder / f"agent-{self.processes.index(process) + 1}.log"))

    def logs(self) -> str:
        return "\n".join(self.log(process) for process in self.processes)

    def effects(self) -> list[list[str]]:
        """What handlers noted, in order: the words of each line, of which the last is the process."""
        return [line.split() for line in whole_lines(self.effect_log)]

    def noted(self, what: str) -> list[str]:
        """Task ids that handlers noted, in order."""
        return [task_id for kind, task_id, _ in self.effects() if kind == what]

    def in_flight(self) -> int:
        return len(set(self.noted("start")) - set(self.noted("end")))

    def running(self, process: Program) -> int:
        """How many tasks one process runs."""
        begun = {task for kind, task, by in self.effects() if (kind, by) == ("start", str(process.pid))}
        return len(begun - set(self.noted("end")))

    def repeated(self) -> int:
        """Executions beyond the first of each task."""
        return sum(many - 1 for many in Counter(self.noted("start")).values())

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@asynccontextmanager
async def open_fleet(servers: PrivateServers, folder: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(servers, folder)
    try:
        yield fleet
    finally:
        fleet.end()


def client_of(servers: PrivateServers) -> Client:
    return Client.connecting(Settings(amqp_url=servers.amqp_url, redis_url=servers.redis_url))


async def submitted(client: Client, many: int, *, capability: str = "work.do") -> list[Handle]:
    durations = [50 + 150 * (number % 10) // 10 for number in range(many)]
    return [handle async for handle in client.submit_many(capability, durations)]


async def unanswered(handles: list[Handle], *, seconds: float = 120.0) -> list[str]:
    """Ids of the tasks that got no value in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    missing = []
    for handle in handles:
        try:
            left = max(0.01, deadline - asyncio.get_running_loop().time())
            await handle.result(int, timeout=left)
        except ResultTimeout:
            missing.append(str(handle.task_id))
    return missing
