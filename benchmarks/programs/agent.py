"""`python -m benchmarks.programs.agent TARGET [PROFILE]`: an agent process as the command line runs it."""

from __future__ import annotations

import sys

from benchmarks.profiling import profiled
from coditect.agent.program import run
from coditect.settings import read_settings


def main(target: str, profile: str | None = None) -> int:
    """Runs the agent until SIGTERM; with `profile` its profile is written there."""
    with profiled(profile):
        return run(target, read_settings())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
