"""Ties of a process to its parent: the child ends when the parent ends, also when the parent is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends; exit at once when the parent has ended already.

    The request works on Linux only; elsewhere the end of its standard input must tell the process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def die_first() -> None:
    """Ask the kernel to kill this process rather than others when memory runs out; Linux only."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
