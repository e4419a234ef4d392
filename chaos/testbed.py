"""The private servers, store, dispatchers and agents of a real run, as processes that faults can act on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from chaos.faults.proxy import fault_proxy
from chaos.history import HISTORY_VARIABLE, NAME_VARIABLE
from chaos.looking import RegistryLook
from coditect.aio.launch import READY_FILE
from coditect.aio.network import NetworkPath
from coditect.local import PrivateServers, private_servers
from coditect.local.errors import LocalError, StartFailed
from coditect.local.private import BROKER, PrivateFoundationDB, private_foundationdb
from coditect.local.servers import find_binaries
from coditect.local.supervisor import POLL_SECONDS, Child, RunningChild, guarded, last_lines, spawn
from coditect.local.watchdog import new_marker
from coditect.model.registration import AgentRecord

START_SECONDS = 60.0
CRASHES = ("| Traceback (most recent call last)", "| Fatal Python error", "A loop that the process needs died")
"""What a log shows of a crash; the records of errors that were expected are each in one line, as JSON."""
SETTLED_SECONDS = 1.0
STORE_PROCESSES = 3
"""The fewest processes of a cluster that goes on without one of them."""
OURS = ("CODITECT_", "CHAOS_")
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "dispatcher": ("chaos.dispatcher",),
    "agent": ("coditect", "agent", "run", "chaos.agent"),
}
"""The Python module, with its arguments, that a process of each role runs."""

MUTATED = "chaos.mutants.mutated"
"""The Python module that runs another one with a mutant in it."""


def command(mutant: str, module: Sequence[str]) -> list[str]:
    """Return the command line that runs a module with its arguments, and with the mutant in it if a name is given."""
    return [sys.executable, "-m", *((MUTATED, mutant) if mutant else ()), *module]


class Post:
    """A process of a testbed under a name such as `agent-1`, which the process keeps when it is restarted."""

    def __init__(self, child: Child, *, marker: str, log_folder: Path, paths: Mapping[str, NetworkPath]) -> None:
        self.paths = paths
        """The proxies' network paths from the process to its servers, by the servers' names; restarts keep them."""
        self._child = child
        self._marker = marker
        self._log_folder = log_folder
        self._running: RunningChild | None = None
        self.stopped = False
        """Whether the process is stopped by a SIGSTOP."""
        self.busy = False
        """Whether a fault acts on the process now."""

    @property
    def name(self) -> str:
        """The name of the process, which restarts keep: agent-1, dispatcher-2."""
        return self._child.name

    @property
    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._running is not None and self._running.exit_code is None

    @property
    def pid(self) -> int | None:
        """The operating system's id of the process; None when it does not run."""
        return self._running.process.pid if self._running is not None and self.alive else None

    @property
    def life(self) -> str:
        """The history's name of the process that runs, or ran last: the name that restarts keep, and the process id."""
        return f"{self.name}#{None if self._running is None else self._running.process.pid}"

    @property
    def ready(self) -> bool:
        """Tell whether the process has reported that it takes work, and has not taken that back to drain."""
        return self.alive and self._child.ready_file is not None and self._child.ready_file.exists()

    @property
    def settled(self) -> bool:
        """Tell whether the process has been ready for over 1 s, long enough to have begun work."""
        file = self._child.ready_file
        with suppress(FileNotFoundError):  # an agent that drains removes it
            return self.alive and file is not None and time.time() - file.stat().st_mtime > SETTLED_SECONDS
        return False

    def start(self) -> None:
        """Start the process unless it runs; returns before the process is ready."""
        if not self.alive:
            self.stopped = False
            self._running = spawn(self._child, marker=self._marker, log_folder=self._log_folder)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._running is not None and self.alive:
            with suppress(ProcessLookupError):
                os.kill(self._running.process.pid, number)
                self.stopped = number is signal.SIGSTOP

    async def end(self) -> None:
        """Kill the process and all of its child processes, and wait until they have ended."""
        if self._running is not None:
            await asyncio.to_thread(self._running.kill)

    @property
    def log(self) -> str:
        """The last lines of the process's log since its start, as text."""
        return "" if self._running is None else last_lines(self._running.log, since=self._running.logged)

    @property
    def drained(self) -> bool:
        """Whether the process has ended with exit code 0: it stopped taking work, handed back the rest, and closed."""
        return self._running is not None and self._running.exit_code == 0

    @property
    def crashed(self) -> bool:
        """Tell whether the process shows a crash: a segmentation fault, or a sign such as a traceback in its log."""
        dumped = self._running is not None and self._running.exit_code == -signal.SIGSEGV
        return dumped or any(sign in self.log for sign in CRASHES)


class ChaosTestbed:
    """The private servers of one chaos run, with its dispatcher and agent processes, on which faults act."""

    def __init__(self, folder: Path, servers: PrivateServers, posts: Mapping[str, Post]) -> None:
        self.folder = folder
        self.servers = servers
        self.posts = posts
        self._lives: dict[int, str] = {}

    def of(self, role: str) -> list[Post]:
        """Return the processes of one role: all dispatchers, or all agents."""
        return [post for name, post in self.posts.items() if name.startswith(f"{role}-")]

    def agents_now(self) -> RegistryLook:
        """Return the names of the agents that run, without those stopped by SIGSTOP, and of those that are ready."""
        posts = {post.pid: post for post in self.of("agent") if post.pid is not None}
        self._lives |= {pid: post.life for pid, post in posts.items()}
        running = {post.life: post.ready for post in posts.values() if not post.stopped}
        return RegistryLook(frozenset(running), frozenset(life for life, ready in running.items() if ready))

    def life_of(self, record: AgentRecord) -> str:
        """Return the history's name for the process whose id is in an agent's record; if unknown, the id as text."""
        pid = record.registration.pid
        return self._lives.get(pid, str(pid))

    async def command_broker(self, expression: str) -> None:
        """Make the running broker evaluate an Erlang expression, by `rabbitmqctl eval`.

        Raises:
            LocalError: when the broker does not run or refuses.
        """
        script, process = find_binaries(os.environ).rabbitmq, self.servers.processes.get(BROKER)
        if script is None or process is None:
            raise LocalError("The broker does not run", program=BROKER)
        command = await asyncio.create_subprocess_exec(
            script.parent / "rabbitmqctl",
            "--quiet",
            "eval",
            expression,
            env=psutil.Process(process.pid).environ(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await command.communicate()
        if command.returncode:
            raise LocalError("The broker refused a command", output=output.decode()[-300:])

    async def start(self) -> None:
        """Start every process, again and again if it ends, and wait until each was ready once.

        Raises:
            StartFailed: when a process is not ready in time.
        """
        await self.all_ready(lambda post: post.start())

    async def all_ready(self, act: Callable[[Post], None] = lambda post: None) -> None:
        """Wait until each process was ready once from now on; until then call `act` with each that was not yet.

        Raises:
            StartFailed: when a process is not ready in time.
        """
        late = [*self.posts.values()]
        try:
            async with asyncio.timeout(START_SECONDS):
                while late := [post for post in late if not post.ready]:
                    for post in late:
                        act(post)
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise StartFailed(
                "A process of the run was not ready in time", program=late[0].name, log=late[0].log
            ) from error


@asynccontextmanager
async def private_testbed(
    folder: Path,
    history: Path,
    *,
    environ: Mapping[str, str],
    processes: Mapping[str, int],
    settings: Mapping[str, str],
    mutant: str = "",
) -> AsyncIterator[ChaosTestbed]:
    """Provide a testbed whose servers run and whose other processes are not started yet; kill them all at the end.

    Its files lie below `folder`, the histories in `history`. `processes` is the number of processes by role of
    `PROGRAMS`; `settings` are environment variables of them all. Each process reaches the broker and Redis by a proxy
    of its own. The broker has its management API, so that stopped processes are evicted. A `mutant` is in every
    process.

    Raises:
        StartFailed, MissingServer, AlreadyUp: when the servers or processes cannot start.
    """
    marker = new_marker()
    elsewhere = {name: value for name, value in environ.items() if not name.startswith(OURS)}
    kept = {name: environ[name] for name in ("CODITECT_RABBITMQ_SBIN",) if name in environ}
    async with private_servers(folder / "servers", environ=elsewhere | kept, management=True) as servers:
        shared = elsewhere | {
            "CODITECT_MANAGEMENT_URL": servers.management_url,
            HISTORY_VARIABLE: str(history),
            **settings,
        }
        async with AsyncExitStack() as stack:
            posts = {}
            roles = [(f"{role}-{number + 1}", role) for role, many in processes.items() for number in range(many)]
            for name, role in roles:
                broker = await stack.enter_async_context(fault_proxy(servers.amqp_url))
                redis = await stack.enter_async_context(fault_proxy(servers.redis_url))
                own = shared | {"CODITECT_AMQP_URL": broker.url, "CODITECT_REDIS_URL": redis.url}
                child = _child(folder, name, command(mutant, PROGRAMS[role]), own)
                paths = {"broker": broker.path, "redis": redis.path}
                posts[name] = Post(child, marker=marker, log_folder=folder / "log", paths=paths)
            stack.enter_context(guarded(marker))
            try:
                yield ChaosTestbed(folder, servers, posts)
            finally:
                await asyncio.gather(*(post.end() for post in posts.values()))


def _child(folder: Path, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> Child:
    ready = folder / "run" / f"{name}.ready"
    ready.parent.mkdir(parents=True, exist_ok=True)
    return Child(
        name=name,
        argv=tuple(argv),
        env={**environ, NAME_VARIABLE: name, READY_FILE: str(ready)},
        folder=folder,
        ready_file=ready,
    )


class StoreKind(StrEnum):
    """The kind of database that a chaos run has as its store."""

    SQLITE = "sqlite"
    FOUNDATIONDB = "fdb"


@dataclass(frozen=True, slots=True)
class ChaosStore:
    """The store that one chaos run has for itself: its URL, and its FoundationDB cluster, if any."""

    url: str
    """The value of `CODITECT_STORE_URL` that names the store."""
    cluster: PrivateFoundationDB | None = None
    """The cluster, for faults; None on SQLite, which has no process of its own."""


@asynccontextmanager
async def private_store(kind: StoreKind, folder: Path, *, environ: Mapping[str, str]) -> AsyncIterator[ChaosStore]:
    """Provide a new store for one run during the block, with its files below `folder`.

    Raises:
        MissingServer, StartFailed, AlreadyUp: when FoundationDB cannot be started.
    """
    if kind is StoreKind.SQLITE:
        yield ChaosStore(f"sqlite:{folder / 'ledger.db'}")
        return
    async with private_foundationdb(folder / "foundationdb", environ=environ, processes=STORE_PROCESSES) as cluster:
        yield ChaosStore(f"fdb:{cluster.cluster_file}", cluster)
