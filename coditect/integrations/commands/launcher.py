"""The launcher: a small process beside an agent that starts its commands, and ends each with all that it started.

::

    agent ──socket──► launcher ──fork──► guard ──fork, exec──► command ─► its own children, theirs, ...

The launcher is started once and forks a *guard* for each command, so that a command costs two forks and no start of an
interpreter. A guard is the subreaper of its command: orphans become its children, whatever session or group they chose,
and it ends when none is left. It kills them when the command has ended, when its agent asks for it, and when its agent
is gone, whose end of the guard's socket closes then, also by SIGKILL. Orphans of a guard that was killed itself become
the launcher's, which kills them. Run by its path with ``python -I -S``: the standard library alone, one thread.

Agent to launcher: one byte with four file descriptors (the guard's socket, stdin, stdout, stderr). On the guard's
socket a line of JSON says what to run; then ``T`` asks for SIGTERM, and for SIGKILL after the grace; the guard answers
one line, ``{"exit": 3}``, or of a command that was not started ``{"errno": 2}`` or ``{"unlimited": "why"}``. Only
Linux has subreapers: elsewhere, a process that has left the command's process group cannot be found.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_LOOK_SECONDS = 0.01
_LARGEST_REQUEST = 64 * 1024 * 1024
FDS = 4
"""The file descriptors that come with each request."""


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children(pid: int) -> list[int]:
    """Return the processes that a process started, or inherited, and that are not reaped yet."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _below(pid: int) -> list[int]:
    found = _children(pid)
    for child in found:
        found.extend(_children(child))
    return found


def _kill(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _ended() -> Iterator[tuple[int, int]]:
    """Reap all ended child processes; yield the process id and the wait status of each."""
    with suppress(ChildProcessError):
        while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
            yield reaped


# -- the guard of one command -----------------------------------------------------------------------------


def _request(control: socket.socket) -> dict[str, object]:
    line = bytearray()
    while not line.endswith(b"\n"):
        part = control.recv(65_536)
        if not part or len(line) > _LARGEST_REQUEST:
            os._exit(0)  # the agent is gone, or no agent
        line += part
    found: dict[str, object] = json.loads(line)
    return found


class _Unlimited(Exception):
    """The error of a memory limit that cannot be set, as above the hard limit of this user."""


def _limit_memory(most_bytes: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    except (ValueError, OverflowError, OSError) as error:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        raise _Unlimited(f"{error}; the hard limit is {'none' if hard == resource.RLIM_INFINITY else hard}") from error


def _become(request: dict[str, object], streams: list[int], guard: int) -> None:
    """Become the command, in a forked process; raise OSError or _Unlimited when it cannot be started."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(0)
    for handled in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(handled, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if isinstance(memory := request["memory_bytes"], int):
        _limit_memory(memory)
    os.chdir(str(request["folder"]))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    argv, environment = request["argv"], request["environment"]
    assert isinstance(argv, list) and isinstance(environment, dict)
    os.execvpe(argv[0], argv, environment)  # noqa: S606 - a command, and no shell


def _start(request: dict[str, object], streams: list[int]) -> tuple[int, dict[str, int | str]]:
    """Start the command; return its pid, and the answer to the agent if it cannot be started; else an empty one."""
    guard, (reading, writing) = os.getpid(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(request, streams, guard)
        except OSError as error:
            os.write(writing, json.dumps({"errno": error.errno or 1}).encode())
        except _Unlimited as error:
            os.write(writing, json.dumps({"unlimited": str(error)}).encode())
        finally:
            os._exit(127)
    os.close(writing)
    failed = os.read(reading, 4096)  # ends at once: the pipe closes when the command begins
    os.close(reading)
    return pid, json.loads(failed or b"{}")


def _reap(command: int) -> int | None:
    """Reap all ended child processes; return the command's exit code if it is one of them, negative for a signal."""
    codes = [os.waitstatus_to_exitcode(status) for pid, status in _ended() if pid == command]
    return codes[0] if codes else None


def _signal_all(command: int, number: int) -> None:
    """Send a signal to the command's process group and, on Linux, to all processes that descend from the command."""
    _kill(_below(os.getpid()), number)
    with suppress(ProcessLookupError, PermissionError):  # when they have ended
        os.killpg(command, number)


def _end_all(command: int) -> None:
    """Kill the command and all that descends from it until none is left; beyond Linux, only its process group, once."""
    while True:
        _signal_all(command, signal.SIGKILL)
        _reap(command)
        if not _LINUX or not _children(os.getpid()):
            return
        time.sleep(_LOOK_SECONDS)


def _watch(control: socket.socket, command: int, wake: int, grace_seconds: float) -> int:
    """Return the command's exit code when it has ended, by itself or as the agent asks; exit if the agent is gone.

    Once the agent is gone, kill the command with all its descendants, and end this process.
    """
    kill_at: float | None = None
    while True:
        left = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select([control.fileno(), wake], [], [], left)
        if wake in ready:
            os.read(wake, 4096)
        if (code := _reap(command)) is not None:
            return code
        asked = control.recv(16) if control.fileno() in ready else None
        if asked == b"":
            _end_all(command)
            os._exit(0)  # the agent is gone, or does not want an answer
        if asked and kill_at is None:
            _signal_all(command, signal.SIGTERM)
            kill_at = time.monotonic() + grace_seconds
        elif kill_at is not None and time.monotonic() >= kill_at:
            _signal_all(command, signal.SIGKILL)
            kill_at = time.monotonic() + grace_seconds + 1


def _guard(control: socket.socket, streams: list[int]) -> None:
    """Be the guard process of one command: run it, kill the processes it leaves, and report its end to the agent."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    request = _request(control)
    pid, failed = _start(request, streams)
    for stream in streams:
        os.close(stream)
    answer = failed
    if not failed:
        grace = request["grace_seconds"]
        assert isinstance(grace, int | float)
        answer = {"exit": _watch(control, pid, wake, grace)}
        _end_all(pid)
    control.sendall(json.dumps(answer).encode() + b"\n")


# -- the launcher -----------------------------------------------------------------------------------------


def _launch(door: socket.socket, fds: list[int], guards: set[int]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            door.close()
            with socket.socket(fileno=fds[0]) as control:
                _guard(control, fds[1:])
        finally:
            os._exit(0)
    guards.add(pid)
    for fd in fds:
        os.close(fd)


def _tidy(guards: set[int]) -> None:
    """Reap guard processes that have ended, and kill processes that the launcher inherited, as from a killed guard."""
    guards.difference_update([pid for pid, _ in _ended()])
    for stray in set(_children(os.getpid())) - guards:
        _kill([stray, *_below(stray)], signal.SIGKILL)


def main(door: socket.socket) -> None:
    """Start a guard process for each command of the agent, until the agent closes its socket and no guard is left."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_DUMPABLE, 0)  # a command can neither trace a guard nor read what it was asked to run
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guards: set[int] = set()
    wake, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    open_ = True
    while open_ or guards:
        ready, _, _ = select.select([door.fileno(), wake] if open_ else [wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _tidy(guards)
        if door.fileno() in ready:
            asked, fds, _, _ = socket.recv_fds(door, 1, FDS)
            for fd in fds:
                os.set_inheritable(fd, False)  # a command gets copies of its streams, and no socket
            if asked and len(fds) == FDS:
                _launch(door, fds, guards)
            else:
                open_ = False


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _door:
        main(_door)
