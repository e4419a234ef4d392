"""Commands and blocks of Python, forked from a process that has imported what they do: imports take most of their time.

``coditect`` and ``block``, first on the path of a reader's shell, are clients that hand their arguments, environment
and descriptors to that process, pass on the signals that end a command, and end as the command does.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from coditect.cli.main import BRANCHES
from tests.docs import run_block

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = (
    "aiormq", "redis.asyncio", "uvloop", "coditect", "coditect.agent.program", "coditect.api.program",
    "coditect.client.program", "dispatcher.program",
)  # fmt: skip
"""What commands and blocks import on their first use, beside the modules of the commands."""
PROGRAMS = ("coditect", "block")
MOST_REQUEST_BYTES = 200_000
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    request = [{name!r}, sys.argv[1:], dict(os.environ), os.getcwd()]
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: server.send(str(number).encode()))
    code = int(server.recv(16) or b"1")
if code < 0:
    if -code != signal.SIGKILL:  # which nobody handles
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def forked_commands(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for the path of a shell, in which each of `PROGRAMS` is forked."""
    clients = folder / "bin"
    clients.mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # a socket's address has 108 bytes, `folder` may have more
        address = f"{short}/commands"
        for name in PROGRAMS:
            client = clients / name
            client.write_text(CLIENT.format(python=sys.executable, address=address, name=name), encoding="utf-8")
            client.chmod(0o700)
        command = [sys.executable, "-m", "tests.docs.forked", address]
        pipe = subprocess.PIPE
        # Ctrl-C is for the reader, who ends the programs.
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, start_new_session=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield clients
            process.terminate()


def serve(address: str) -> tuple[str, list[str]]:
    """Fork for each request; return its program and arguments in the fork that is to run it."""
    for name in IMPORTED + tuple(f"coditect.cli.{branch.module}" for branch in BRANCHES.values()):
        import_module(name)
    gc.collect()
    gc.freeze()  # else each fork's garbage collector copies all that it looks through: most of the fork's time
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([server, sys.stdin], [], [])[0]:  # whoever started this has ended
                sys.exit()
            client, _ = server.accept()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            if os.fork() == 0:
                server.close()
                return _forked(client)
            client.close()


def _forked(client: socket.socket) -> tuple[str, list[str]]:
    """Run the program in a fork of this fork, and tell the client how it ended; its end kills the program."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, descriptors, _, _ = socket.recv_fds(client, MOST_REQUEST_BYTES, 3)
    if not message:  # a signal ended the client before it asked for anything
        os._exit(0)
    program, arguments, environment, folder = json.loads(message)
    child = os.fork()
    if child:
        _supervise(client, child)
    os.setpgid(0, 0)
    client.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return program, arguments


def _supervise(client: socket.socket, child: int) -> None:
    """Pass signals on till the child ends, and its exit code back; without a client kill all that it started."""
    try:
        os.setpgid(child, child)  # as the child does: a signal may come before it has
        ended = os.pidfd_open(child)
        while ended not in select.select([client.fileno(), ended], [], [])[0]:
            number = client.recv(16)
            os.killpg(child, int(number or signal.SIGKILL))
        with suppress(ConnectionError):
            client.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    finally:
        os._exit(0)


def main() -> None:
    """Serve, and be the program in each fork."""
    program, arguments = serve(sys.argv[1])
    sys.path[0] = str(Path(sys.executable).parent)
    if program == "block":
        run_block.main(*arguments)
    else:
        sys.argv = [str(Path(sys.path[0]) / program), *arguments]
        import_module("coditect.__main__").main()


if __name__ == "__main__":
    main()
