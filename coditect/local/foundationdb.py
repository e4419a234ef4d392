"""A private FoundationDB cluster that runs while an `async with` block lasts, for chaos runs, tests and benchmarks.

Its programs are not in the package registries: they come with FoundationDB's server package, or from its source. The
first process is the coordinator, and the cluster is not available while that process is away.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coditect.local.child import Child, Probe
from coditect.local.errors import MissingServer, StartFailed
from coditect.local.private import PrivateProcesses
from coditect.local.servers.ports import free_ports
from coditect.local.state import hold_data, write_atomically
from coditect.local.supervisor import guarded
from coditect.local.watchdog import new_marker

FDBSERVER = "CODITECT_FDBSERVER"
"""The environment variable with the path of `fdbserver`; `fdbcli` is looked for beside it first."""
MORE_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/libexec", "/usr/bin", "/usr/local/bin")
INSTALL = f"Install the server package of FoundationDB 7.3, or have {FDBSERVER} name its fdbserver"
AVAILABLE_SECONDS = 60.0
COMMAND_SECONDS = 10
COUNTED_SECONDS = 30.0
POLL_SECONDS = 0.2
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

    They are looked for on PATH and in the usual folders; CODITECT_FDBSERVER may name the server.
    """
    named = environ.get(FDBSERVER)
    folders = os.pathsep.join([environ.get("PATH", ""), *MORE_FOLDERS])
    server = shutil.which(named or "fdbserver", path=folders)
    if server is None:
        return None
    cli = shutil.which("fdbcli", path=os.pathsep.join([str(Path(server).parent), folders]))
    return FoundationDBPrograms(Path(server), Path(cli)) if cli else None


class PrivateFoundationDB(PrivateProcesses):
    """A private FoundationDB cluster; its processes are ``fdb-1`` (the coordinator), ``fdb-2`` and so on."""

    coordinator = "fdb-1"

    def __init__(self, children: list[Child], *, cli: Path, cluster_file: Path, marker: str, folder: Path) -> None:
        super().__init__(children, marker=marker, folder=folder)
        self.cluster_file = cluster_file
        """The file by which a client finds the cluster."""
        self._cli = cli

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all processes, also of those that do not run."""
        return tuple(self._children)

    async def create(self) -> None:
        """Start every process of a new cluster, create its database, and return when the database is available.

        Three processes or more keep each key twice.

        Raises:
            StartFailed: a process died, or the database is not available in time.
        """
        await self.start()
        copies = "double" if len(self._children) >= 3 else "single"
        told = ""
        deadline = time.monotonic() + AVAILABLE_SECONDS
        while "is available" not in await self.command("status minimal"):
            if time.monotonic() > deadline:
                raise StartFailed("The private FoundationDB is not available", log=told)
            told = await self.command(f"configure new {copies} ssd")
            await asyncio.sleep(POLL_SECONDS)

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
            await asyncio.sleep(POLL_SECONDS)
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
    marker = new_marker()
    with hold_data(folder), guarded(marker):
        cluster_file = folder / "fdb.cluster"
        ports = free_ports(processes)
        write_atomically(cluster_file, f"private:{secrets.token_hex(8)}@127.0.0.1:{ports[0]}\n")
        children = [
            _child(programs.server, f"fdb-{number}", port, cluster_file, folder=folder, environ=environ)
            for number, port in enumerate(ports, 1)
        ]
        cluster = PrivateFoundationDB(
            children, cli=programs.cli, cluster_file=cluster_file, marker=marker, folder=folder
        )
        try:
            await cluster.create()
            yield cluster
        finally:
            await cluster.stop()


def _child(
    server: Path, name: str, port: int, cluster_file: Path, *, folder: Path, environ: Mapping[str, str]
) -> Child:
    data, logs = folder / name, folder / "log" / name
    for one in (data, logs):
        one.mkdir(parents=True, exist_ok=True)
    place = ("--locality-zoneid", name, "--locality-machineid", name)  # copies of a key lie in different places
    files = ("-d", str(data), "-L", str(logs), "-C", str(cluster_file))
    knobs = (f"--{knob}" for knob in KNOBS)
    return Child(
        name=name,
        argv=(str(server), "-p", f"127.0.0.1:{port}", *files, *place, *_MEMORY, *knobs),
        env=dict(environ),
        folder=folder,
        ready=_listens(port),
    )


def _listens(port: int) -> Probe:
    async def listens() -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    return listens
