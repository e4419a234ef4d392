"""The agent's side of the launcher: starts it once, and hands it one command after another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from threading import Lock

from coditect.integrations.commands import launcher
from coditect.integrations.commands.failures import CommandTroubled

NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CODITECT_STARTED_BY")
"""The variables of the launcher: to find Python's libraries, and to be found by the watchdog of `coditect up`.

A command may read the environment of its parent, so the agent's secrets are not in it.
"""
END_SECONDS = 10.0
"""How long the launcher may take to end what still runs."""


@dataclass(frozen=True, slots=True)
class StartedCommand:
    """A running command: the pipes of its input and output, and a socket to the guard process that can kill it."""

    control: socket.socket
    stdin: FileIO
    stdout: FileIO
    stderr: FileIO

    def kill(self) -> None:
        """Tell the command's guard process to kill the command with all its processes; do not wait for that.

        The control socket closes when that is done.
        """
        try:
            self.control.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the guard has ended already

    def ask_to_end(self) -> None:
        """Ask the guard process to end the command: SIGTERM, then SIGKILL after a grace period. From any thread."""
        try:
            self.control.send(b"T")
        except OSError:
            return  # the guard has ended, and with it the command


@dataclass(frozen=True, slots=True)
class Launch:
    """A command to run without a shell: its arguments, folder, environment and limits."""

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(repr=False)
    memory_bytes: int | None
    """The data segment of each of its processes (`RLIMIT_DATA`); None: no limit."""
    grace_seconds: float
    """The time between SIGTERM and SIGKILL."""

    def line(self) -> bytes:
        """Return the command as the line of JSON that asks a guard process to run it."""
        document = {
            "argv": self.argv,
            "folder": str(self.folder),
            "environment": dict(self.environment),
            "memory_bytes": self.memory_bytes,
            "grace_seconds": self.grace_seconds,
        }
        return json.dumps(document).encode() + b"\n"


class Launcher:
    """The starter of an agent process's commands, each below a guard process; any thread may call `start`."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._lock = Lock()

    @contextmanager
    def start(self, command: Launch) -> Iterator[StartedCommand]:
        """Start a command; leaving the block kills what is left of it, and closes its files.

        Raises:
            CommandTroubled: when the launcher is gone; retryable.
        """
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            given, (stdout, written), (stderr, told) = os.pipe(), os.pipe(), os.pipe()
            others = [given[0], written, told]
            stdin = stack.enter_context(FileIO(given[1], "wb"))
            outputs = [stack.enter_context(FileIO(fd, "rb")) for fd in (stdout, stderr)]
            try:
                with self._lock:
                    socket.send_fds(self._door, [b"R"], [theirs.fileno(), *others])
                ours.sendall(command.line())
            except OSError as error:
                raise CommandTroubled("The launcher of commands is gone", fix="start the agent again") from error
            finally:
                theirs.close()
                for fd in others:
                    os.close(fd)
            yield StartedCommand(ours, stdin, *outputs)


@contextmanager
def launching() -> Iterator[Launcher]:
    """Run a launcher inside of the block; leaving the block ends all commands that still run."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", launcher.__file__, str(theirs.fileno())],
                env={name: os.environ[name] for name in NEEDED if name in os.environ},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield Launcher(ours)
        finally:
            ours.close()
            process.wait(END_SECONDS)
