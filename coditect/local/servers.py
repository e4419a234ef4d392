"""Private RabbitMQ and Redis: the search for their programs, their ports and secrets, and how they are started.

A private RabbitMQ is Erlang's port mapper and the broker, which share nothing with the machine's own RabbitMQ. A
private Redis syncs its append-only file every second, evicts nothing, and asks for a password. Both listen on the
loopback interface, on free ports that are kept so that a restart uses the same ones.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, field, fields
from itertools import islice
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coditect.local.errors import INSTALL_SERVERS, MissingServer, StartFailed
from coditect.local.probe import broker_answers, port_open, redis_answers
from coditect.local.state import write_atomically
from coditect.local.supervisor import Child

RABBITMQ_SBIN = "CODITECT_RABBITMQ_SBIN"
RABBITMQ_PLACES = (
    "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/homebrew/opt/rabbitmq/sbin",
    "usr/local/opt/rabbitmq/sbin",
    "home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
    "opt/rabbitmq*/sbin",
    "usr/local/lib/rabbitmq*/sbin",
)
MORE_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin", "/opt/homebrew/sbin", "/usr/bin")
"""Folders in which server programs lie beside those on PATH."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The paths of RabbitMQ, Erlang's port mapper and Redis; None for a program that is not installed."""

    rabbitmq: Path | None
    epmd: Path | None
    redis: Path | None
    rabbitmq_sbin: str | None = None
    """The folder of RabbitMQ's scripts that the environment names; None when the usual places were searched."""


def find_binaries(environ: Mapping[str, str], *, root: Path = Path("/")) -> Binaries:
    """Find RabbitMQ (only in the folder that `environ` names, if any), its port mapper and Redis, in the usual places.

    The usual places are those in which packages install RabbitMQ (the newest in the first such place counts), and PATH.
    """
    folders = [*environ.get("PATH", "").split(os.pathsep), *MORE_FOLDERS]
    sbin = environ.get(RABBITMQ_SBIN) or None
    return Binaries(
        rabbitmq=_find("rabbitmq-server", [sbin]) if sbin else _find_rabbitmq(folders, root),
        epmd=_find("epmd", [sbin, *folders] if sbin else folders) or _epmd_in_erlang(root),
        redis=_find("redis-server", folders) or _find("valkey-server", folders),
        rabbitmq_sbin=sbin,
    )


def require_rabbitmq(found: Binaries) -> tuple[Path, Path]:
    """Return the paths of RabbitMQ and of Erlang's port mapper, which must be installed.

    Raises:
        MissingServer: one of them is not installed, or not in the folder that was named.
    """
    if found.rabbitmq is None and found.rabbitmq_sbin is not None:
        raise MissingServer(
            "There is no RabbitMQ in this folder",
            folder=found.rabbitmq_sbin,
            fix=f"Have {RABBITMQ_SBIN} name the folder of its rabbitmq-server, or unset it",
        )
    if found.rabbitmq is None or found.epmd is None:
        raise MissingServer("RabbitMQ is not installed", fix=INSTALL_SERVERS)
    return found.rabbitmq, found.epmd


def require_redis(found: Binaries) -> Path:
    """Return the path of Redis' server program, which must be installed.

    Raises:
        MissingServer: Redis is not installed.
    """
    if found.redis is None:
        raise MissingServer("Redis is not installed", fix=INSTALL_SERVERS)
    return found.redis


def versions(found: Binaries) -> tuple[str, str]:
    """Return the names and versions of RabbitMQ and Redis as text; the broker's version is in its folder's name."""
    return (
        _named("RabbitMQ", found.rabbitmq, lambda path: str(path.resolve().parent.parent.name)),
        _named("Redis", found.redis, lambda path: subprocess.check_output([path, "--version"], text=True)),
    )


def _named(name: str, program: Path | None, text_of: Callable[[Path], str]) -> str:
    if program is None:
        return f"{name} (not installed)"
    version = re.search(r"\d+(\.\d+)+", text_of(program))
    return f"{name} {version[0]}" if version else name


def _find(name: str, folders: Iterable[str]) -> Path | None:
    found = shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


def _find_rabbitmq(folders: Iterable[str], root: Path) -> Path | None:
    for place in RABBITMQ_PLACES:
        scripts = sorted(root.glob(f"{place}/rabbitmq-server"), key=_version_order)
        if scripts:
            return scripts[-1]
    script = _find("rabbitmq-server", folders)
    # A wrapper stands alone; the real script has its environment beside it.
    return script if script and (script.resolve().parent / "rabbitmq-env").exists() else None


def _version_order(script: Path) -> list[int]:
    return [int(digits) for digits in "".join(c if c.isdigit() else " " for c in str(script)).split()]


def _epmd_in_erlang(root: Path) -> Path | None:
    return next(iter(sorted(root.glob("usr/lib*/erlang/erts-*/bin/epmd"), key=_version_order, reverse=True)), None)


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


MODULES = "modules"
PLUGINS = "applications"
PACKAGED = Path("/usr/lib/rabbitmq")
"""The folder in which Linux packages install RabbitMQ."""
_BROKER = "rabbit"
_CORE = (_BROKER, "mnesia")
"""The applications that every broker runs; its stated dependencies leave out Mnesia, which it starts itself."""
_DEPENDENCIES = re.compile(r"\{\s*applications\s*,\s*\[([^\]]*)\]")


def plugins_of(server: Path) -> Path:
    """Return the folder of an installed RabbitMQ in which its core and its optional plug-ins lie."""
    return server.resolve().parent.parent / "plugins"


def link_modules(server: Path, path: str, *, plugins: Iterable[str], folder: Path, packaged: Path = PACKAGED) -> bool:
    """Link all Erlang modules that a broker loads, and its plug-ins, into two folders; return whether it was done.

    The folders are ``modules`` and ``applications`` below `folder`; `plugins` names the plug-ins, and `path` is the
    PATH of the broker's start script. Returns False when the broker's parts are not found, e.g. packed into archives;
    then there is neither folder. A module without a link is still found in its usual place.
    """
    for name in (MODULES, PLUGINS):
        shutil.rmtree(folder / name, ignore_errors=True)
    parts = _applications(plugins_of(server))
    if not {_BROKER, *plugins} <= parts.keys():
        return False
    known = (_libraries(path) if server.resolve().is_relative_to(packaged) else {}) | parts
    core = _with_dependencies(_CORE, known)
    whole = _with_dependencies([*_CORE, *plugins], known)
    _link((module for name in whole for module in (known[name] / "ebin").glob("*.beam")), folder / MODULES)
    _link((parts[name] for name in (whole - core | {_BROKER}) & parts.keys()), folder / PLUGINS)
    return True


def _libraries(path: str) -> dict[str, Path]:
    """Return the folders of Erlang's own libraries, by library, for the `erl` on `path`; empty if it is not found."""
    erl = shutil.which("erl", path=path)
    found = (_applications(parent / "lib") for parent in Path(erl).resolve().parents) if erl else iter(())
    return next((libraries for libraries in found if "kernel" in libraries), {})


def _applications(folder: Path) -> dict[str, Path]:
    """Return the folders of the Erlang applications below a folder, by application: ``ssl`` for ``ssl-10.8.7``."""
    return {file.stem: file.parent.parent for file in sorted(folder.glob("*-[0-9]*/ebin/*.app"))}


def _with_dependencies(names: Iterable[str], known: Mapping[str, Path]) -> set[str]:
    needed: set[str] = set()
    to_come = list(names)
    while to_come:
        name = to_come.pop()
        if name in known and name not in needed:
            needed.add(name)
            stated = _DEPENDENCIES.search((known[name] / "ebin" / f"{name}.app").read_text(errors="replace"))
            to_come += re.findall(r"\w+", stated[1]) if stated else []
    return needed


def _link(targets: Iterable[Path], folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    for target in targets:
        (folder / target.name).symlink_to(target)


BROKER_NODE = "coditect@localhost"
RABBITMQ_CONFIGURATION = """\
listeners.tcp.local = 127.0.0.1:{port}
default_user = coditect
default_pass = {password}
log.console = true
log.console.level = warning
log.file = false
raft.wal_max_size_bytes = 64000000
consumer_timeout = 7200000
disk_free_limit.absolute = 50MB
"""
ERLANG = "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"
"""The variable of Erlang's arguments, split at spaces: folders in it are relative to the broker's working folder."""
MANAGEMENT = "rabbitmq_management"
MANAGEMENT_CONFIGURATION = """\
management.tcp.ip = 127.0.0.1
management.tcp.port = {port}
management.rates_mode = none
"""
"""The management API's settings, without message rates, which are not needed and cost memory and time per queue."""


def has_management(found: Binaries) -> bool:
    """Tell whether RabbitMQ is installed with the plug-in of the management API, as nearly all packages have it."""
    return found.rabbitmq is not None and any(plugins_of(found.rabbitmq).glob(f"{MANAGEMENT}-[0-9]*"))


def rabbitmq_children(
    binaries: Binaries, addresses: Addresses, *, folder: Path, environ: Mapping[str, str], management: bool = False
) -> tuple[Child, Child]:
    """Write the broker's files below `folder`; return Erlang's port mapper and the broker, to start in this order.

    With `management` the broker serves its management API, which takes some 10 MB.

    Raises:
        MissingServer: RabbitMQ is not installed.
    """
    server, epmd = require_rabbitmq(binaries)
    _write_files(folder, addresses, management=management)
    env = _environment(folder, addresses, environ)
    if link_modules(server, env["PATH"], plugins=[MANAGEMENT] if management else [], folder=folder):
        env |= {"RABBITMQ_PLUGINS_DIR": str(folder / PLUGINS), ERLANG: f"{env[ERLANG]} -pa {MODULES}"}
    ports = addresses.ports
    return (
        Child(
            name="epmd",
            argv=(str(epmd), "-port", str(ports.epmd), "-address", "127.0.0.1"),
            env=env,
            folder=folder,
            ready=port_open(ports.epmd),
            ready_within_seconds=10.0,
            stop_within_seconds=5.0,
            stage=0,
        ),
        Child(
            name="rabbitmq",
            argv=(str(server),),
            env=env,
            folder=folder,
            ready=broker_answers(addresses.amqp_url),
            ready_within_seconds=90.0,
            stop_within_seconds=20.0,
            stage=1,
        ),
    )


def _write_files(folder: Path, addresses: Addresses, *, management: bool) -> None:
    for name in ("home", "data", "log"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    configuration = RABBITMQ_CONFIGURATION.format(port=addresses.ports.amqp, password=addresses.password)
    if management:
        configuration += MANAGEMENT_CONFIGURATION.format(port=addresses.ports.management)
    write_atomically(folder / "rabbitmq.conf", configuration)
    write_atomically(folder / "env.conf", "")
    write_atomically(folder / "plugins", f"[{MANAGEMENT if management else ''}].\n")
    cookie = folder / "home" / ".erlang.cookie"
    write_atomically(cookie, addresses.cookie)
    cookie.chmod(0o400)


def _environment(folder: Path, addresses: Addresses, environ: Mapping[str, str]) -> dict[str, str]:
    foreign = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
    kept = {name: value for name, value in environ.items() if not name.startswith(foreign)}
    return kept | {
        "PATH": os.pathsep.join([environ.get("PATH", ""), "/usr/local/bin", "/usr/bin", "/bin", "/opt/homebrew/bin"]),
        "HOME": str(folder / "home"),
        "LC_ALL": "C.UTF-8",
        "ERL_EPMD_PORT": str(addresses.ports.epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # The start script then becomes the broker instead of waiting beside it, and signals reach the broker.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": BROKER_NODE,
        "RABBITMQ_DIST_PORT": str(addresses.ports.distribution),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
        ERLANG: "-kernel inet_dist_use_interface {127,0,0,1}",
    }


# A process title of its own would overwrite the environment, and with it the marker of who started it.
REDIS_CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{data}"
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 512mb
save ""
maxmemory-policy noeviction
stream-node-max-bytes 256
daemonize no
set-proc-title no
logfile ""
"""


def redis_child(binaries: Binaries, addresses: Addresses, *, folder: Path, environ: Mapping[str, str]) -> Child:
    """Write Redis' configuration below `folder`, and return Redis as a program to supervise.

    Raises:
        MissingServer: Redis is not installed.
    """
    server = require_redis(binaries)
    data = folder / "data"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    configuration = folder / "redis.conf"
    write_atomically(
        configuration,
        REDIS_CONFIGURATION.format(port=addresses.ports.redis, password=addresses.password, data=data),
    )
    return Child(
        name="redis",
        argv=(str(server), str(configuration)),
        env=dict(environ),
        folder=folder,
        ready=redis_answers(addresses.redis_url),
        ready_within_seconds=60.0,
        stop_within_seconds=10.0,
        stage=0,
    )
