"""Child processes of agents, each in a process group that is killed as a whole.

A child writes into a file rather than a pipe: a flood of output cannot fill the agent's memory, and a grandchild that
keeps the output open cannot make the agent wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a child process: exit code, timeout and last output."""

    code: int
    """The exit code; a negative one is the signal that ended the process."""

    timed_out: bool
    """Whether the process was killed because it ran too long."""

    tail: str
    """The last 8 KiB of the process's stdout and stderr."""


async def run_child(
    argv: Sequence[str | Path],
    *,
    folder: Path,
    log: Path,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Exit:
    """Run a program in its own process group until it ends or its time is over; the whole group is dead on return.

    A timeout kills the group and sets `Exit.timed_out`; a cancellation kills the group and goes on. A process that left
    the group (`setsid`) is out of reach.

    Raises:
        OSError: the program cannot be started.
    """
    output = await asyncio.to_thread(log.open, "wb")
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        timed_out = await _wait(child, timeout_seconds)
    finally:
        output.close()
    tail = await asyncio.to_thread(_tail, log)
    return Exit(child.returncode if child.returncode is not None else -signal.SIGKILL, timed_out, tail)


async def _wait(child: asyncio.subprocess.Process, timeout_seconds: float) -> bool:
    try:
        async with asyncio.timeout(timeout_seconds):
            await child.wait()
    except TimeoutError:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
    return False


def _tail(log: Path) -> str:
    with log.open("rb") as output:
        output.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return output.read(_TAIL_BYTES).decode(errors="replace")
