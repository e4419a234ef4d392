"""A process that ends with the one that started it, also when that was killed, and before it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Asks the kernel to kill this process when its parent ends; exits when that has happened already.

    Linux only; elsewhere the end of its standard input has to tell it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def die_first() -> None:
    """Asks the kernel to kill this process rather than others when memory runs out; Linux only."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
