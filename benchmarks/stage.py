"""Private servers, and the measured programs on them. Everything that was started is stopped with the block."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from redis.asyncio import Redis

from coditect.aio.launch import READY_FILE
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology, capability_queues
from coditect.local import PrivateServers, private_servers
from coditect.local.supervisor import Child, RunningChild, guarded, last_lines, spawn
from coditect.model.capability import Priority
from coditect.settings.settings import Settings
from coditect.wire import routing

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.005
PYTHON = sys.executable

Beside = Callable[[int], AbstractAsyncContextManager[None]]
"""An action beside a running program, which gets the program's pid."""


class ProgramFailed(RuntimeError):
    """The error of a measured program that ended or was not ready in time; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run, with what it needs beside the servers' addresses; `seconds` bounds a run to the end."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 300.0
    ready_seconds: float = 60.0


def python(name: str, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> Program:
    """Return a module of the benchmarks as a program to run."""
    return Program(name, (PYTHON, "-m", module, *arguments), env or {})


def agent(target: str, *, slots: int, drain_seconds: float = 5.0, env: Mapping[str, str] | None = None) -> Program:
    """Return an agent process as `coditect agent run` starts it, with `slots` slots."""
    settings = {"CODITECT_SLOTS": str(slots), "CODITECT_DRAIN_SECONDS": str(drain_seconds)}
    return python("agent", "benchmarks.programs.agent", target, env={**settings, **(env or {})})


class Stage:
    """A set of private servers, on which programs are started, each with a log of its own."""

    def __init__(self, servers: PrivateServers, *, folder: Path, marker: str) -> None:
        self._servers = servers
        self._folder = folder
        self._marker = marker
        self._numbers = count(1)

    @property
    def settings(self) -> Settings:
        """The settings of Coditect's client for the servers of the stage."""
        return Settings(amqp_url=self._servers.amqp_url, redis_url=self._servers.redis_url)

    @property
    def broker_pid(self) -> int:
        """The process id of the broker."""
        return self._servers.processes["rabbitmq"].pid

    def file(self, name: str) -> Path:
        """Return a path for a file that no other caller gets."""
        return self._folder / f"{next(self._numbers)}-{name}"

    def fresh_folder(self, name: str) -> Path:
        """Return a new empty folder that no other caller gets."""
        folder = self.file(name)
        folder.mkdir()
        return folder

    def start(self, program: Program, *, ready_file: Path | None = None) -> RunningChild:
        """Start a program, which the caller stops; its environment has no setting except the given ones."""
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}
        settings = {
            "CODITECT_AMQP_URL": self._servers.amqp_url,
            "CODITECT_REDIS_URL": self._servers.redis_url,
            "CODITECT_LOG_LEVEL": "WARNING",
            **program.env,
        }
        if ready_file is not None:
            settings[READY_FILE] = str(ready_file)
        name = f"{program.name}-{next(self._numbers)}"
        child = Child(name, program.argv, foreign | settings, ROOT, stop_within_seconds=15.0)
        return spawn(child, marker=self._marker, log_folder=self._folder / "log")

    @asynccontextmanager
    async def running(self, program: Program) -> AsyncIterator[int]:
        """Run a program during the block, and yield its pid when it is ready; stop it at the end.

        Raises:
            ProgramFailed: when the program is not ready in time, or does not end well.
        """
        ready_file = self.file("ready")
        running = self.start(program, ready_file=ready_file)
        try:
            await until_ready(running, ready_file, seconds=program.ready_seconds)
            try:
                yield running.process.pid
            except ProgramFailed as error:
                error.add_note(f"{running.child.name} ran beside it:\n{last_lines(running.log)}")
                raise
        finally:
            await running.stop()
        if running.exit_code:
            raise failed(running)

    async def finished(self, program: Program, *, beside: Beside | None = None) -> dict[str, Any]:
        """Run a program to its end, and return the JSON object in the file whose path is its last argument.

        `beside` is entered with the program's pid when the program is ready, and left when it has ended.

        Raises:
            ProgramFailed: when the program does not end well and in time.
        """
        answer, ready_file = self.file("answer.json"), self.file("ready") if beside else None
        running = self.start(replace(program, argv=(*program.argv, str(answer))), ready_file=ready_file)
        try:
            async with asyncio.timeout(program.seconds), AsyncExitStack() as watching:
                if beside is not None and ready_file is not None:
                    await until_ready(running, ready_file, seconds=program.ready_seconds)
                    await watching.enter_async_context(beside(running.process.pid))
                code = await running.exited()
        except TimeoutError as error:
            raise failed(running) from error
        finally:
            await running.stop()
        if code:
            raise failed(running)
        document = json.loads(answer.read_text())
        assert isinstance(document, dict)
        return document

    async def declare(self, capability: str) -> None:
        """Declare the queues of a capability that no agent offers yet."""
        async with AmqpBroker(self._servers.amqp_url, name="benchmarks") as broker:
            await broker.declare(base_topology() + capability_queues(capability))

    async def empty_redis(self) -> None:
        """Remove everything that earlier programs left in the private Redis, from its append-only file, too."""
        async with Redis.from_url(self._servers.redis_url) as redis:
            await redis.flushall()
            while (await redis.info("persistence"))["aof_rewrite_in_progress"]:  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(POLL_SECONDS)
            await redis.bgrewriteaof()

    async def forget(self, capabilities: Iterable[str]) -> None:
        """Delete the queues of the given capabilities, with their messages."""
        async with AmqpBroker(self._servers.amqp_url, name="benchmarks") as broker:
            for capability in capabilities:
                await broker.delete_queue(routing.dead_queue(capability))
                for level in Priority:
                    await broker.delete_queue(routing.task_queue(capability, level))


async def until_ready(running: RunningChild, ready_file: Path, *, seconds: float) -> None:
    """Wait until a program has created its ready file.

    Raises:
        ProgramFailed: when the program ended, or is not ready in time.
    """
    deadline = time.monotonic() + seconds
    while not ready_file.exists():  # noqa: ASYNC240 - another process makes it; one stat is not worth a thread
        if running.exit_code is not None or time.monotonic() > deadline:
            raise failed(running)
        await asyncio.sleep(POLL_SECONDS)


def failed(running: RunningChild) -> ProgramFailed:
    """Return the error for a program that did not do its work."""
    return ProgramFailed(f"{running.child.name}: exit code {running.exit_code}\n{last_lines(running.log)}")


@asynccontextmanager
async def open_stage() -> AsyncIterator[Stage]:
    """Yield a stage on fresh servers; all its files are in a folder that is removed at the end."""
    below = ROOT / ".coditect"
    remove_folders_of_dead_runs(below)
    folder = below / f"bench-{os.getpid()}"
    marker = uuid.uuid4().hex
    try:
        with guarded(marker):
            async with private_servers(folder, environ=os.environ) as servers:
                yield Stage(servers, folder=folder, marker=marker)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_folders_of_dead_runs(below: Path) -> None:
    """Remove the folders that killed runs left behind."""
    for folder in below.glob("bench-*"):
        pid = folder.name.removeprefix("bench-")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
