"""What a program does before anything else, and a launcher that execs a program which dies with its parent.

The launcher is called as ``launch.py <parent pid> <program> <argument>...``.

Linux kills a process that asked for it (``PR_SET_PDEATHSIG``) when the thread that forked it ends; the request survives
exec. A request here, in a process of its own, is safe where a hook between fork and exec is not. The launcher is run by
its path with ``python -I -S``: the standard library alone, about 15 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15


def begin_program() -> None:
    """Let SIGTERM end this process while it starts, and let no process of the same user read its secrets.

    The kernel ignores a signal that the first process of a container does not handle, and a program takes a second to
    import what it needs. On Linux a process that is not dumpable can neither be traced (as py-spy does) nor be asked
    for its environment, but by root or with CAP_SYS_PTRACE. The programs that it starts are not affected. The variable
    by which `coditect up` finds its processes becomes this process's name, which stays readable; 15 bytes of it.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if mark := os.environb.get(b"CODITECT_STARTED_BY"):
            libc.prctl(_PR_SET_NAME, mark, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with(parent_pid: int) -> None:
    """Ask Linux to kill this process when its parent ends; exit at once when the parent has ended already.

    The request works on Linux only; elsewhere something else must tell the process, such as its standard input's end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - replacing this process is the point


READY_FILE = "CODITECT_READY_FILE"
"""The environment variable with the path of the ready file."""


def tell_ready(*more: str, address: str = "") -> None:
    """Write `address` to the file that `CODITECT_READY_FILE` names, and to that of each variable in `more` that is set.

    A variable that is not set has no file; without an address the files are empty.
    """
    for variable in (READY_FILE, *more):
        if path := os.environ.get(variable):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(address)
