"""Child processes of agents, each in a process group that is killed as a whole.

A child writes into a file rather than a pipe: a flood of output cannot fill the agent's memory, and a grandchild that
keeps the output open cannot make the agent wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

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
        return end_of(output, _TAIL_BYTES)


def end_of(file: IO[bytes], most_bytes: int) -> str:
    """Return the end of a file as text."""
    return _last_bytes(file, most_bytes).decode(errors="replace")


def _last_bytes(file: IO[bytes], most_bytes: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
    return file.read(most_bytes)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a program: its exit code, and the last of what it wrote."""

    code: int
    output: bytes
    errors: str
    """What it wrote to stderr, without blanks around it."""


def run_program(
    argv: Sequence[str],
    *,
    seconds: float,
    most_bytes: int,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    together: bool = False,
    leaves: bool = False,
) -> Ended:
    """Run a program in its own process group, wait until it ends, and return the end of its stdout and stderr.

    With `together`, all that it writes is its output. What it started is killed with it when its time is over, unless
    it `leaves` what is to live on.

    Raises:
        OSError: the program cannot be started.
        TimeoutExpired: it did not end in time, and was killed.
    """
    with TemporaryFile() as output, TemporaryFile() as errors:
        with subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if together else errors,
            start_new_session=True,
        ) as program:
            try:
                code = program.wait(seconds)
            except subprocess.TimeoutExpired:
                if leaves:
                    program.kill()
                else:
                    os.killpg(program.pid, signal.SIGKILL)
                raise
        return Ended(code, _last_bytes(output, most_bytes), end_of(errors, most_bytes).strip())
