"""A launcher program that sets resource limits on itself and then becomes the given command.

``python limits.py --cpu-seconds 60 --memory-bytes 2147483648 --file-bytes 33554432 -- pytest``

The launcher is no `preexec_fn`, because code between fork and exec of a process with threads may deadlock.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Set the resource limits of this process, and replace its program by the command after ``--``.

    A limit above the hard limit that already holds is lowered to it. CPU time counts for each process of the command by
    itself; at the limit the process gets SIGXCPU, a second later SIGKILL.
    """
    parser = argparse.ArgumentParser(prog="limits", description="Run a command within limits.")
    parser.add_argument("--cpu-seconds", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--file-bytes", type=int, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    _limit(resource.RLIMIT_CPU, options.cpu_seconds, options.cpu_seconds + 1)
    _limit(resource.RLIMIT_AS, options.memory_bytes, options.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, options.file_bytes, options.file_bytes)
    _limit(resource.RLIMIT_CORE, 0, 0)
    os.execvp(options.command[0], options.command)  # noqa: S606 - becoming the command is the purpose


def _limit(which: int, soft: int, hard: int) -> None:
    held = resource.getrlimit(which)[1]
    if held != resource.RLIM_INFINITY:
        soft, hard = min(soft, held), min(hard, held)
    try:
        resource.setrlimit(which, (soft, hard))
    except (ValueError, OSError) as error:
        # macOS refuses RLIMIT_AS. The other limits still hold, so the command runs.
        print(f"limit {which} not set: {error}", file=sys.stderr)  # noqa: T201 - this program's log


if __name__ == "__main__":
    main(sys.argv[1:])
