"""RabbitMQ, Redis and FoundationDB in containers, by the library testcontainers of the extra `containers`."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from coditect.errors import missing_extra
from coditect.local.errors import StartFailed


@dataclass(frozen=True, slots=True)
class Images:
    """The container images of RabbitMQ, Redis and FoundationDB."""

    rabbitmq: str = "rabbitmq:4"
    redis: str = "redis:7"
    foundationdb: str = "foundationdb/foundationdb:7.3.79"


@dataclass(frozen=True, slots=True)
class Server:
    """A server to run in a container: port, environment, and a command that succeeds once the server is ready.

    With `host_network` the port is the machine's own; otherwise the engine chooses the machine's port.
    """

    image: str
    port: int
    ready: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    command: str | None = None
    host_network: bool = False


def rabbitmq(image: str, password: str) -> Server:
    """Return the description of a RabbitMQ container with the user `coditect` and the given password."""
    environment = {"RABBITMQ_DEFAULT_USER": "coditect", "RABBITMQ_DEFAULT_PASS": password}
    return Server(image, 5672, ("rabbitmq-diagnostics", "-q", "check_port_connectivity"), environment)


def redis(image: str, password: str) -> Server:
    """Return the description of a Redis container that asks for the given password."""
    environment = {"REDISCLI_AUTH": password}
    return Server(image, 6379, ("redis-cli", "-e", "ping"), environment, f"redis-server --requirepass {password}")


def foundationdb(image: str, port: int) -> Server:
    """Return the description of a FoundationDB container: a cluster of one process on a port of the machine.

    A client connects to the address that the cluster file names, so the address is the same inside and outside.
    """
    cli = "fdbcli --timeout 5 --exec"
    ready = f"{cli} 'configure new single memory'; {cli} 'status minimal' | grep -q 'is available'"
    environment = {"FDB_NETWORKING_MODE": "host", "FDB_PORT": str(port)}
    return Server(image, port, ("sh", "-c", ready), environment, host_network=True)


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
def container(server: Server) -> Iterator[str]:
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
