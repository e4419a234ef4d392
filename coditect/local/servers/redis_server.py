"""A private Redis: append-only file synced every second, nothing evicted, loopback interface, password.

Streams are kept in small nodes: RQ has one for every job's outcome, and each begins with a whole node. The append-only
file is rewritten only when it is large: a rewrite takes a core for seconds, in the midst of the work that makes the
file grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coditect.local.child import Child
from coditect.local.servers.binaries import Binaries, require_redis
from coditect.local.servers.ports import Addresses
from coditect.local.servers.probe import redis_answers
from coditect.local.state import write_atomically

# A process title of its own would overwrite the environment, and with it the marker of who started it.
CONFIGURATION = """\
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
        CONFIGURATION.format(port=addresses.ports.redis, password=addresses.password, data=data),
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
