"""RabbitMQ, Redis and FoundationDB for tests that want real ones: a plugin of pytest.

``pytest_plugins = ["coditect.testing.servers"]`` in a `conftest.py` gives the fixture `coditect_servers`, and a line of
pytest's header says what it takes; `running_servers` is the same for a block.

==========================================  ============================================================
in the environment                          the servers
==========================================  ============================================================
CODITECT_TEST_SERVERS=named                 those of CODITECT_AMQP_URL and CODITECT_REDIS_URL
CODITECT_TEST_SERVERS=containers            containers if Docker answers, else private ones
nothing, or CODITECT_TEST_SERVERS=private   processes of the installed programs, on free ports
==========================================  ============================================================
"""

from __future__ import annotations

import gc
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest

from coditect.aio.loop import plain_runner
from coditect.errors import SetupError, missing_extra
from coditect.local.errors import StartFailed
from coditect.local.private import PrivateServers, private_foundationdb, private_servers
from coditect.local.servers import find_binaries, free_ports, versions

Opened = TypeVar("Opened")

WANTED = "CODITECT_TEST_SERVERS"
AMQP = "CODITECT_AMQP_URL"
REDIS = "CODITECT_REDIS_URL"


# Containers, by the library testcontainers of the extra `containers`


@dataclass(frozen=True, slots=True)
class Images:
    """The container images of RabbitMQ, Redis and FoundationDB."""

    rabbitmq: str = "rabbitmq:4"
    redis: str = "redis:7"
    foundationdb: str = "foundationdb/foundationdb:7.3.79"


@dataclass(frozen=True, slots=True)
class ContainerServer:
    """A server to run in a container: port, environment, and a command that succeeds once the server is ready.

    With `host_network` the port is the machine's own; otherwise the engine chooses the machine's port.
    """

    image: str
    port: int
    ready: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    command: str | None = None
    host_network: bool = False


def rabbitmq_container(image: str, password: str) -> ContainerServer:
    """Return the description of a RabbitMQ container with the user `coditect` and the given password."""
    environment = {"RABBITMQ_DEFAULT_USER": "coditect", "RABBITMQ_DEFAULT_PASS": password}
    return ContainerServer(image, 5672, ("rabbitmq-diagnostics", "-q", "check_port_connectivity"), environment)


def redis_container(image: str, password: str) -> ContainerServer:
    """Return the description of a Redis container that asks for the given password."""
    environment = {"REDISCLI_AUTH": password}
    return ContainerServer(
        image, 6379, ("redis-cli", "-e", "ping"), environment, f"redis-server --requirepass {password}"
    )


def foundationdb_container(image: str, port: int) -> ContainerServer:
    """Return the description of a FoundationDB container: a cluster of one process on a port of the machine.

    A client connects to the address that the cluster file names, so the address is the same inside and outside.
    """
    cli = "fdbcli --timeout 5 --exec"
    ready = f"{cli} 'configure new single memory'; {cli} 'status minimal' | grep -q 'is available'"
    environment = {"FDB_NETWORKING_MODE": "host", "FDB_PORT": str(port)}
    return ContainerServer(image, port, ("sh", "-c", ready), environment, host_network=True)


def docker_answers() -> bool:
    """Tell whether a Docker engine answers at `DOCKER_HOST`, at the current Docker context or at the usual socket.

    Raises:
        SetupError: the extra `containers` is not installed.
    """
    try:
        from docker.errors import DockerException  # noqa: PLC0415 - optional: the extra `containers`
        from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415
    except ImportError as error:
        raise missing_extra("containers") from error
    with warnings.catch_warnings():
        # docker's client leaves its socket open when nothing answers: a test run for which warnings are errors fails
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            DockerClient().client.close()
        except DockerException:
            answers = False
        else:
            answers = True
        gc.collect()
    return answers


@contextmanager
def running_container(server: ContainerServer) -> Iterator[str]:
    """Run a server in a container for as long as the block lasts, and yield its address: host and port.

    Raises:
        StartFailed: the engine refused, or the server was not ready in time; `TC_MAX_TRIES` is the bound in seconds.
    """
    from docker.errors import DockerException  # noqa: PLC0415 - optional: the extra `containers`
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415
    from testcontainers.core.wait_strategies import ExecWaitStrategy  # noqa: PLC0415

    made = DockerContainer(server.image, env=dict(server.environment), command=server.command)
    if server.host_network:
        made.with_kwargs(network_mode="host")
    else:
        made.with_exposed_ports(server.port)
    made.waiting_for(ExecWaitStrategy(list(server.ready)))
    with ExitStack() as stack:
        try:
            stack.enter_context(made)
        except (DockerException, TimeoutError) as error:
            log = str(error)
            raise StartFailed("A server could not be started in a container", image=server.image, log=log) from error
        port = server.port if server.host_network else made.get_exposed_port(server.port)
        yield f"{made.get_container_host_ip()}:{port}"


# Servers of whichever kind


class Kind(StrEnum):
    """The kind of a test run's servers: started as private processes or in containers, or named and running."""

    PRIVATE = "private"
    CONTAINERS = "containers"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ServerUrls:
    """The addresses of running servers; `store_url` only when FoundationDB was asked for."""

    amqp_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    store_url: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client, an agent and a dispatcher find the servers."""
        urls = {AMQP: self.amqp_url, REDIS: self.redis_url}
        return urls if self.store_url is None else {**urls, "CODITECT_STORE_URL": self.store_url}


def select(environ: Mapping[str, str], *, docker_answers: Callable[[], bool] = docker_answers) -> Kind:
    """Return the kind of servers that the environment asks for; private ones in place of containers without Docker.

    Raises:
        SetupError: there is no such kind, an address is missing, or the extra `containers` is.
    """
    wanted = environ.get(WANTED) or Kind.PRIVATE
    if wanted not in list(Kind):
        raise SetupError("There are no such servers", given=wanted, fix=f"{WANTED}={', '.join(Kind)}")
    if wanted == Kind.NAMED and not (environ.get(AMQP) and environ.get(REDIS)):
        raise SetupError("The servers of a test run have no addresses", fix=f"set {AMQP} and {REDIS}")
    return Kind.PRIVATE if wanted == Kind.CONTAINERS and not docker_answers() else Kind(wanted)


def describe(
    environ: Mapping[str, str], *, images: Images | None = None, docker_answers: Callable[[], bool] = docker_answers
) -> str:
    """Return a text for people that names the servers which `running_servers` would use or start."""
    chosen = images or Images()
    match select(environ, docker_answers=docker_answers):
        case Kind.NAMED:
            return f"those of {AMQP} and {REDIS}"
        case Kind.CONTAINERS:
            return f"containers of {chosen.rabbitmq} and {chosen.redis}"
        case Kind.PRIVATE:
            reason = ", because no Docker engine answers" if environ.get(WANTED) == Kind.CONTAINERS else ""
            return f"private {' and '.join(versions(find_binaries(environ)))}{reason}"


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
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(TemporaryDirectory(prefix="coditect-")))
        match select(own):
            case Kind.NAMED:
                found = ServerUrls(own[AMQP], own[REDIS])
            case Kind.CONTAINERS:
                found = _in_containers(stack, images or Images())
            case Kind.PRIVATE:
                servers = stack.enter_context(private(place, own))
                found = ServerUrls(servers.amqp_url, servers.redis_url)
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
    elif select(environ) is not Kind.CONTAINERS:
        own = folder / "foundationdb"
        with _running(private_foundationdb(own, environ=environ, processes=processes)) as cluster:
            yield cluster.cluster_file
    else:
        server = foundationdb_container((images or Images()).foundationdb, free_ports(1)[0])
        with running_container(server) as address:
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


def _in_containers(stack: ExitStack, images: Images) -> ServerUrls:
    password = secrets.token_hex(16)
    rabbitmq = stack.enter_context(running_container(rabbitmq_container(images.rabbitmq, password)))
    redis = stack.enter_context(running_container(redis_container(images.redis, password)))
    return ServerUrls(f"amqp://coditect:{password}@{rabbitmq}", f"redis://default:{password}@{redis}/0")


@contextmanager
def _running(context: AbstractAsyncContextManager[Opened]) -> Iterator[Opened]:
    with plain_runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(stack.enter_async_context(context))
        finally:
            runner.run(stack.aclose())
