"""The demo's fleet: its own folder, private servers, a dispatcher and nine agent processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join

from coditect.agent.process import ProcessId
from coditect.errors import CoditectError
from coditect.local.errors import AlreadyUp
from coditect.local.private import PrivateServers, private_servers
from coditect.local.servers import keep_addresses
from coditect.local.state import UpFolder, dashboard_address, hold
from coditect.local.supervisor import ProcessSupervisor, Say, guarded
from coditect.local.up import LEDGER, ProcessPlan, Program, Role, UpPlan, process_plan
from coditect.local.watchdog import new_marker

FLEET = {
    "reviewer-1": ("agents/reviewer.py",),
    "reviewer-2": ("agents/reviewer.py",),
    "tester-1": ("agents/tester.py",),
    "documenter-1": ("agents/documenter.py",),
    "summarizer-1": ("agents/summarizer.py",),
    "publisher-1": ("agents/publisher.py",),
    "git-1": ("agents/git.yaml",),
    "writers-1": ("--name", "writers", "--markdown", "agents/writers"),
    "clock-1": ("--name", "clock", "--mcp", join([sys.executable, "-m", "mcp_server_time", "--local-timezone=UTC"])),
}
"""The arguments of `coditect agent run` for each agent process: Python, a command, Markdown, and an MCP server."""
_URLS = ("CODITECT_AMQP_URL", "CODITECT_REDIS_URL")
_MOST_AT_ONCE = 20
_DRAIN_SECONDS = 2


@dataclass(frozen=True, slots=True)
class RunningFleet:
    """The demo's servers and agents while they run."""

    environ: dict[str, str]
    """The environment variables for a client of this fleet."""

    servers: PrivateServers | None
    """The servers that the demo started; None when the user named a RabbitMQ."""

    dashboard: str
    """The address that opens the dashboard, with the key of the HTTP API."""

    supervisor: ProcessSupervisor

    def process_of(self, name: str) -> ProcessId | None:
        """Return the process of an agent by the agent's name; None after the process died, until it is restarted."""
        return next((child.process for child in self.supervisor.children if child.name == name), None)


@contextmanager
def demo_folder(root: Path) -> Iterator[Path]:
    """Lock ``.coditect/demo``, or ``demo-2`` and so on, for the block; delete an earlier demo's data; yield the path.

    The data is that of its broker, Redis and ledger: the earlier demo may have been killed.

    Raises:
        AlreadyUp: 20 demos run already.
    """
    with ExitStack() as stack:
        folder = _hold_first(root / ".coditect", stack)
        for server in ("rabbitmq", "redis"):
            shutil.rmtree(folder / server / "data", ignore_errors=True)
        for file in folder.glob(f"{LEDGER}*"):
            file.unlink()
        yield folder


def _hold_first(below: Path, stack: ExitStack) -> Path:
    for number in range(1, _MOST_AT_ONCE):
        folder = below / ("demo" if number == 1 else f"demo-{number}")
        try:
            stack.enter_context(hold(UpFolder(folder)))
        except AlreadyUp:
            continue
        return folder
    folder = below / f"demo-{_MOST_AT_ONCE}"
    stack.enter_context(hold(UpFolder(folder)))
    return folder


@asynccontextmanager
async def running_fleet(
    root: Path, folder: Path, *, settings: Mapping[str, str], say: Say, agents: Mapping[str, Sequence[str]] = FLEET
) -> AsyncIterator[RunningFleet]:
    """Start the demo's servers, dispatcher, API and agents, ready when the block begins, and stop them at its end.

    `settings` are variables for all programs, beside those of this process that are not Coditect's.

    Servers that ``CODITECT_AMQP_URL`` and ``CODITECT_REDIS_URL`` name are used; the others are started. The agents
    start beside them: most of that is loading code, and then they wait for the broker.

    Raises:
        MissingServer: a server is not installed.
        StartFailed: a server or an agent could not be started; nothing is left running.
    """
    # Settings that are meant for other programs (a port, a number of slots) must not reach all agents at once.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}
    named_urls = {name: os.environ[name] for name in _URLS if os.environ.get(name)}
    addresses = keep_addresses(UpFolder(folder).servers)
    urls = dict(zip(_URLS, (addresses.amqp_url, addresses.redis_url), strict=True)) | named_urls
    parts = _plan(
        agents, UpPlan(folder, root, amqp_url=urls[_URLS[0]], redis_url=urls[_URLS[1]]), {**environ, **settings}
    )
    marker, ready = new_marker(), asyncio.Event()
    supervisor = ProcessSupervisor(parts.children, marker=marker, log_folder=UpFolder(folder).log, say=say)
    async with AsyncExitStack() as stack, _supervised(supervisor, marker, ready):
        servers = await stack.enter_async_context(_servers(folder, environ, named_urls, say=say))
        await ready.wait()
        dashboard = dashboard_address(UpFolder(folder).address_of("api") or "", parts.variables.get("CODITECT_API_KEY"))
        yield RunningFleet({**environ, **urls}, None if _URLS[0] in named_urls else servers, dashboard, supervisor)


@asynccontextmanager
async def _servers(
    folder: Path, environ: Mapping[str, str], named_urls: Mapping[str, str], *, say: Say
) -> AsyncIterator[PrivateServers]:
    missing = [server for server, url in zip(("RabbitMQ", "Redis"), _URLS, strict=True) if url not in named_urls]
    began = time.monotonic()
    if missing:
        say(f"Starting {' and '.join(missing)} in .coditect/{folder.name}")
    wanted = {"rabbitmq": "RabbitMQ" in missing, "redis": "Redis" in missing}
    async with private_servers(folder, environ=environ, **wanted) as servers:
        if missing:
            say(f"{' and '.join(missing)} ready after {time.monotonic() - began:.1f} s")
        yield servers


def _plan(agents: Mapping[str, Sequence[str]], plan: UpPlan, environ: Mapping[str, str]) -> ProcessPlan:
    runs = {name: ("-m", "coditect", "agent", "run", *arguments) for name, arguments in agents.items()}
    others = {"dispatcher-1": ("-m", "dispatcher"), "api": ("-m", "coditect", "api", "--any-port")}
    roles = {"dispatcher-1": Role.DISPATCHER, "api": Role.API}
    programs = tuple(
        Program(
            name,
            (sys.executable, *arguments),
            env={"CODITECT_DRAIN_SECONDS": str(_DRAIN_SECONDS)},
            announces_ready=True,
            role=roles.get(name, Role.AGENT),
            stop_within_seconds=_DRAIN_SECONDS + 2,
        )
        for name, arguments in {**others, **runs}.items()
    )
    return process_plan(replace(plan, programs=programs), environ=environ)


@asynccontextmanager
async def _supervised(supervisor: ProcessSupervisor, marker: str, ready: asyncio.Event) -> AsyncIterator[None]:
    """Run the fleet's processes while the block runs, set `ready` when all are ready, and stop them at the end."""
    stop = asyncio.Event()
    with guarded(marker):
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(stop=stop, ready=ready.set))
            try:
                yield
            finally:
                stop.set()


def explain(errors: BaseExceptionGroup[CoditectError], *, title: str) -> str:
    """Return each error of a group, however deeply nested, on a line with its fix and without a traceback."""
    return "\n".join(
        explain(error, title=title) if isinstance(error, BaseExceptionGroup) else f"{title}: {error}"
        for error in errors.exceptions
    )
