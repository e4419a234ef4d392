"""The free ports and the secrets of the private servers, kept so that a restart uses the same ones."""

from __future__ import annotations

import random
import secrets
import socket
from dataclasses import astuple, dataclass, field, fields
from itertools import islice
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coditect.local.errors import StartFailed
from coditect.local.state import write_atomically

LOWEST_PORT = 15_000
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_EPHEMERAL_START = 32_768


@dataclass(frozen=True, slots=True)
class ServerPorts:
    """The ports of the private servers, on the loopback interface only."""

    amqp: int
    distribution: int
    epmd: int
    redis: int
    management: int = 0
    """The port of the broker's management API; 0 in a file of a version that had none."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The ports and secrets of one folder's servers; new ports keep the secrets, since data on disk depend on these."""

    ports: ServerPorts
    password: str = field(repr=False)
    cookie: str = field(repr=False)

    @property
    def amqp_url(self) -> str:
        """The broker's address without a path: the one form that every client library reads as the vhost ``/``."""
        return f"amqp://coditect:{self.password}@127.0.0.1:{self.ports.amqp}"

    @property
    def management_url(self) -> str:
        """The address at which the broker's management API answers, if the broker is started with the API."""
        return f"http://coditect:{self.password}@127.0.0.1:{self.ports.management}"

    @property
    def redis_url(self) -> str:
        """The address of Redis' database 0, as the default user.

        The address names the user, because ``redis-cli -u`` sends an empty name as it is.
        """
        return f"redis://default:{self.password}@127.0.0.1:{self.ports.redis}/0"


def keep_addresses(file: Path) -> Addresses:
    """Return the ports and secrets saved in a file; if a port is taken, choose and save new ports first.

    Without a readable file, new ports and new secrets are made and saved.

    Raises:
        StartFailed: there are no free ports.
    """
    kept = _read(file)
    if kept and all(port and _is_free(port) for port in astuple(kept.ports)):
        return kept
    addresses = Addresses(
        ports=ServerPorts(*free_ports(len(fields(ServerPorts)))),
        password=kept.password if kept else secrets.token_hex(16),
        cookie=kept.cookie if kept else secrets.token_hex(16).upper(),
    )
    write_atomically(file, TypeAdapter(Addresses).dump_json(addresses, indent=2).decode() + "\n")
    return addresses


def _read(file: Path) -> Addresses | None:
    try:
        return TypeAdapter(Addresses).validate_json(file.read_text())
    except (FileNotFoundError, ValidationError):
        return None


def free_ports(number: int) -> list[int]:
    """Return free ports of the loopback interface, below the range that the kernel gives to outgoing connections.

    Inside that range a client that dials a stopped server may be given the server's own port and reach itself; the
    server then cannot come back.

    Raises:
        StartFailed: there are no free ports.
    """
    limit = max(LOWEST_PORT + 1_000, _ephemeral_start())
    candidates = iter(random.SystemRandom().sample(range(LOWEST_PORT, limit), 200))
    free = list(islice(filter(_is_free, candidates), number))
    if len(free) < number:
        raise StartFailed("There are no free ports on the loopback interface")
    return free


def _ephemeral_start() -> int:
    try:
        return int(EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return DEFAULT_EPHEMERAL_START


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True
