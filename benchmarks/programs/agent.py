"""`python -m benchmarks.programs.agent TARGET`: an agent process as the command line runs it."""

from __future__ import annotations

import sys

from coditect.agent.program import run
from coditect.settings.settings import read_settings


def main(target: str) -> int:
    """Run the agent that the target names until SIGTERM; return the exit code."""
    return run(target, read_settings())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
