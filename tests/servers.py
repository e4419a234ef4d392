"""The servers of a test run: those that the environment names, else containers or private ones that the run starts.

`coditect.testing.servers` chooses and starts them. Private ones have their files below ``.coditect/test-<pid>``, beside
whatever `coditect up` runs. Tests isolate themselves by names (a vhost or a prefix of their own), never by flushing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from coditect.local import PrivateServers
from coditect.testing.servers import ServerUrls as Servers
from coditect.testing.servers import private, running_servers

ROOT = Path(__file__).resolve().parent.parent
__all__ = ["ROOT", "Servers", "own_servers", "private_servers_of_run", "servers"]


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
def servers() -> Iterator[Servers]:
    """The servers of this run, started when the first test asks for them."""
    folder = ROOT / ".coditect" / f"test-{os.getpid()}"
    with _removed(folder), running_servers(folder=folder) as found:
        yield found


@pytest.fixture
def own_servers(tmp_path: Path) -> Iterator[PrivateServers]:
    """A RabbitMQ and a Redis of this test alone, to kill and restart; takes about three seconds."""
    with private_servers_of_run(tmp_path / "servers", os.environ) as servers:
        yield servers


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
