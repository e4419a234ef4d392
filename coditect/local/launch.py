"""A launcher that becomes a program which dies with its parent: ``launch.py <parent pid> <program> <argument>...``.

Linux kills a process that asked for it (``PR_SET_PDEATHSIG``) when the thread that forked it ends; the request survives
exec. A request here, in a process of its own, is safe where a hook between fork and exec is not. The launcher is run by
its path with ``python -I -S``: the standard library alone, about 15 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` ends; end it now if that has happened already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - replacing this process is the point
