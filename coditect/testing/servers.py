"""RabbitMQ, Redis and FoundationDB for tests that want real ones: a plugin of pytest.

``pytest_plugins = ["coditect.testing.servers"]`` in a `conftest.py` gives the fixture `coditect_servers`, and a line of
pytest's header says what it takes; `running_servers` is the same for a block.

===================================================  ==========================================================
in the environment                                   the servers
===================================================  ==========================================================
CODITECT_TEST_AMQP_URL, CODITECT_TEST_REDIS_URL      the named ones
CODITECT_TEST_SERVERS=containers                     containers where Docker answers, else private ones
nothing, or CODITECT_TEST_SERVERS=private            private ones: processes of what is installed, on free ports
===================================================  ==========================================================
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest

from coditect.aio.loop import plain_runner
from coditect.errors import SetupError
from coditect.local.foundationdb import private_foundationdb
from coditect.local.private import PrivateServers, private_servers
from coditect.local.servers.binaries import find_binaries, versions
from coditect.local.servers.ports import free_ports
from coditect.testing import containers
from coditect.testing.containers import Images, docker_answers

Opened = TypeVar("Opened")

WANTED = "CODITECT_TEST_SERVERS"
AMQP = "CODITECT_TEST_AMQP_URL"
REDIS = "CODITECT_TEST_REDIS_URL"


class Kind(StrEnum):
    """The kind of the servers that a test run starts: private processes, or containers."""

    PRIVATE = "private"
    CONTAINERS = "containers"


@dataclass(frozen=True, slots=True)
class ServerUrls:
    """The addresses of running servers; `store_url` only when FoundationDB was asked for."""

    amqp_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    store_url: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client, an agent and a dispatcher find the servers."""
        urls = {"CODITECT_AMQP_URL": self.amqp_url, "CODITECT_REDIS_URL": self.redis_url}
        return urls if self.store_url is None else {**urls, "CODITECT_STORE_URL": self.store_url}


def select(environ: Mapping[str, str], *, docker_answers: Callable[[], bool] = docker_answers) -> Kind:
    """Return the kind of servers to start: containers if they are wanted and Docker answers, else private processes.

    Raises:
        SetupError: there is no such kind, or the extra `containers` is missing.
    """
    wanted = environ.get(WANTED) or Kind.PRIVATE
    if wanted not in list(Kind):
        raise SetupError("There are no such servers", given=wanted, fix=f"{WANTED}=private or {WANTED}=containers")
    return Kind.CONTAINERS if wanted == Kind.CONTAINERS and docker_answers() else Kind.PRIVATE


def describe(
    environ: Mapping[str, str], *, images: Images | None = None, docker_answers: Callable[[], bool] = docker_answers
) -> str:
    """Return a text for people that names the servers which `running_servers` would use or start."""
    named = [name for name in (AMQP, REDIS) if environ.get(name)]
    if len(named) == 2:
        return f"those of {AMQP} and {REDIS}"
    chosen = images or Images()
    if select(environ, docker_answers=docker_answers) is Kind.CONTAINERS:
        text = f"containers of {chosen.rabbitmq} and {chosen.redis}"
    else:
        text = f"private {' and '.join(versions(find_binaries(environ)))}"
        text += ", because no Docker engine answers" if environ.get(WANTED) == Kind.CONTAINERS else ""
    return text + "".join(f"; but that of {name}" for name in named)


@contextmanager
def running_servers(
    *,
    foundationdb: bool = False,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    images: Images | None = None,
) -> Iterator[ServerUrls]:
    """Start servers, or use those that the environment names, while the block lasts, and yield the servers' addresses.

    The files of private servers lie in `folder`, by default a temporary one. `environ` is the process's own by default.
    FoundationDB is that of `running_foundationdb`; its client library must be installed.

    Raises:
        SetupError: a server can be had neither way; the error names the fix.
        StartFailed: a server died or was not ready in time; nothing is left running.
    """
    own = os.environ if environ is None else environ
    amqp_url, redis_url = own.get(AMQP), own.get(REDIS)
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(TemporaryDirectory(prefix="coditect-")))
        if amqp_url and redis_url:
            found = ServerUrls(amqp_url, redis_url)
        elif select(own) is Kind.CONTAINERS:
            found = _in_containers(stack, images or Images(), amqp_url, redis_url)
        else:
            wanted = private(place, own, rabbitmq=not amqp_url, redis=not redis_url)
            servers = stack.enter_context(wanted)
            found = ServerUrls(amqp_url or servers.amqp_url, redis_url or servers.redis_url)
        if foundationdb:
            file = stack.enter_context(running_foundationdb(place, own, images=images))
            found = replace(found, store_url=f"fdb:{file}")
        yield found


@contextmanager
def running_foundationdb(
    folder: Path, environ: Mapping[str, str], *, images: Images | None = None, processes: int = 1
) -> Iterator[Path]:
    """Yield the cluster file of the FoundationDB that the environment names, else of one that runs with the block.

    That is a container where containers are wanted and Docker answers, else private processes with their files in
    `folder`. A container is a cluster of one process.

    Raises:
        SetupError: FoundationDB can be had in none of these ways; the error names the fix.
        StartFailed: a process died or was not ready in time; nothing is left running.
    """
    named = environ.get("FDB_CLUSTER_FILE")
    if named:
        yield Path(named)
    elif select(environ) is Kind.PRIVATE:
        own = folder / "foundationdb"
        with _running(private_foundationdb(own, environ=environ, processes=processes)) as cluster:
            yield cluster.cluster_file
    else:
        server = containers.foundationdb((images or Images()).foundationdb, free_ports(1)[0])
        with containers.container(server) as address:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "fdb.cluster"
            file.write_text(f"docker:docker@{address}\n")
            yield file


@contextmanager
def private(
    folder: Path,
    environ: Mapping[str, str],
    *,
    rabbitmq: bool = True,
    redis: bool = True,
    management: bool = False,
) -> Iterator[PrivateServers]:
    """Run `coditect.local.private_servers` for a block of synchronous code, and yield the private servers."""
    context = private_servers(folder, environ=environ, rabbitmq=rabbitmq, redis=redis, management=management)
    with _running(context) as servers:
        yield servers


@pytest.fixture(scope="session")
def coditect_servers() -> Iterator[ServerUrls]:
    """The addresses of a RabbitMQ and a Redis for the whole run: those that the environment names, or started ones."""
    with running_servers() as found:
        yield found


def pytest_report_header() -> str:
    """Return the line of pytest's header that names the servers which the test run uses."""
    try:
        return f"servers: {describe(os.environ)}"
    except SetupError as error:
        raise pytest.UsageError(str(error)) from error


def _in_containers(stack: ExitStack, images: Images, amqp_url: str | None, redis_url: str | None) -> ServerUrls:
    password = secrets.token_hex(16)
    if not amqp_url:
        address = stack.enter_context(containers.container(containers.rabbitmq(images.rabbitmq, password)))
        amqp_url = f"amqp://coditect:{password}@{address}"
    if not redis_url:
        address = stack.enter_context(containers.container(containers.redis(images.redis, password)))
        redis_url = f"redis://default:{password}@{address}/0"
    return ServerUrls(amqp_url, redis_url)


@contextmanager
def _running(context: AbstractAsyncContextManager[Opened]) -> Iterator[Opened]:
    with plain_runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(stack.enter_async_context(context))
        finally:
            runner.run(stack.aclose())
