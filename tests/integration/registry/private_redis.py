"""A Redis of a test's own, which it may kill, pause and wipe."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from coditect.local.servers import free_ports

MASTER = "mymaster"


class PrivateRedis:
    """A redis-server on a free loopback port that keeps nothing on disk: killed, it comes back empty.

    `options` are further words of its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_ports(1)[0]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as output:
            self._process = subprocess.Popen(self._command(), stdout=output, stderr=output)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)

    def _command(self) -> list[str]:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        kept = ["--save", "", "--appendonly", "no", "--enable-debug-command", "local"]
        return ["redis-server", *place, *kept, *self._options]

    def stop(self) -> None:
        """Stands still (SIGSTOP) until it is killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """With -9; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class PrivateSentinel(PrivateRedis):
    """A sentinel that alone decides about one master, whose name is `MASTER`."""

    def __init__(self, folder: Path, master: PrivateRedis) -> None:
        super().__init__(folder)
        self._master = master

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.port}/{MASTER}/0"

    def _command(self) -> list[str]:
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self._folder}"]
        lines += [f"sentinel monitor {MASTER} 127.0.0.1 {self._master.port} 1"]
        lines += [f"sentinel down-after-milliseconds {MASTER} 500", f"sentinel failover-timeout {MASTER} 5000"]
        configuration = self._folder / "sentinel.conf"  # it writes what it learns into the file
        configuration.write_text("\n".join([*lines, ""]))
        return ["redis-server", str(configuration), "--sentinel"]


R = TypeVar("R", bound=PrivateRedis)


@contextlib.contextmanager
def run_private_redis(folder: Path) -> Iterator[PrivateRedis]:
    """Started, and gone at the end."""
    with running(PrivateRedis(folder)) as server:
        yield server


@contextlib.contextmanager
def running(server: R) -> Iterator[R]:
    """Started, and gone at the end."""
    server.start()
    try:
        yield server
    finally:
        server.kill()
