"""The servers of a test run: those that the environment names, else private ones that the run starts.

``CODITECT_TEST_AMQP_URL`` and ``CODITECT_TEST_REDIS_URL`` name servers that are already there. Otherwise the
run starts a RabbitMQ and a Redis on free ports, their files below ``.coditect/test-<pid>``, beside whatever
`coditect up` runs. Tests isolate themselves by names (a vhost or a prefix of their own), never by flushing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from coditect.local import PrivateServers, private_servers

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers of this run are; `private` can kill and restart them, if the run started them."""

    amqp_url: str
    redis_url: str
    private: PrivateServers | None = None


@contextmanager
def servers_of_run(environ: Mapping[str, str], *, below: Path = ROOT / ".coditect") -> Iterator[Servers]:
    """The servers from the environment, or private ones for as long as the block lasts."""
    amqp_url = environ.get("CODITECT_TEST_AMQP_URL")
    redis_url = environ.get("CODITECT_TEST_REDIS_URL")
    if amqp_url and redis_url:
        yield Servers(amqp_url, redis_url)
        return
    with private_servers_of_run(
        below / f"test-{os.getpid()}", environ, rabbitmq=not amqp_url, redis=not redis_url
    ) as private:
        yield Servers(amqp_url or private.amqp_url, redis_url or private.redis_url, private)


@contextmanager
def private_servers_of_run(
    folder: Path,
    environ: Mapping[str, str],
    *,
    rabbitmq: bool = True,
    redis: bool = True,
    management: bool = False,
) -> Iterator[PrivateServers]:
    """Private servers for a synchronous block; the folder is removed after it.

    A test that kills servers takes these rather than the run's own, which others share.
    """
    _remove_folders_of_dead_runs(folder.parent)
    try:
        with asyncio.Runner() as runner:
            stack = AsyncExitStack()
            context = private_servers(folder, environ=environ, rabbitmq=rabbitmq, redis=redis, management=management)
            try:
                yield runner.run(stack.enter_async_context(context))
            finally:
                runner.run(stack.aclose())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers of this run, started when the first test asks for them."""
    with servers_of_run(os.environ) as found:
        yield found


@pytest.fixture
def own_servers(tmp_path: Path) -> Iterator[PrivateServers]:
    """A RabbitMQ and a Redis of this test alone, to kill and restart; takes about three seconds."""
    with private_servers_of_run(tmp_path / "servers", os.environ) as private:
        yield private


def _remove_folders_of_dead_runs(below: Path) -> None:
    for folder in below.glob("test-*"):
        pid = folder.name.removeprefix("test-")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
