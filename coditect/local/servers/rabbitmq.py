"""A private RabbitMQ: Erlang's port mapper and the broker, which share nothing with the machine's own RabbitMQ.

Node name, ports, cookie, home, plug-ins (none, or the management API), data and configuration are its own, below one
folder; every listener is on the loopback interface. The port mapper runs in the foreground as a child of the
supervisor: started by the broker itself it would stay behind as a daemon. The same folder gives the same node, so
queues and persistent messages outlive a kill.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from coditect.local.child import Child
from coditect.local.servers.binaries import Binaries, require_rabbitmq
from coditect.local.servers.modules import MODULES, PLUGINS, link_modules, plugins_of
from coditect.local.servers.ports import Addresses
from coditect.local.servers.probe import broker_answers, port_open
from coditect.local.state import write_atomically

NODE = "coditect@localhost"
CONFIGURATION = """\
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


def has_management(server: Path) -> bool:
    """Tell whether an installed RabbitMQ has the plug-in of the management API, as nearly all packages do."""
    return any(plugins_of(server).glob(f"{MANAGEMENT}-[0-9]*"))


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
    configuration = CONFIGURATION.format(port=addresses.ports.amqp, password=addresses.password)
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
        "RABBITMQ_NODENAME": NODE,
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
