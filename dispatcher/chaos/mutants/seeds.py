"""The program that plays seeds of the simulation one by one, and prints each outcome as a line of JSON.

``python -m dispatcher.chaos.mutants.seeds FIRST LAST INVARIANT ...`` ends after the first seed that breaks one of these
invariants, or any invariant when none is named. A mutant can be put only into a program of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from dispatcher.chaos.simulation import play
from dispatcher.chaos.simulation_plan import MUTATED

MODULE = "dispatcher.chaos.mutants.seeds"


def main(arguments: Sequence[str]) -> None:
    """Simulate runs of seeds FIRST to LAST, print outcomes as JSON, and stop at a violated INVARIANT (any, if none)."""
    first, last, *invariants = arguments
    for seed in range(int(first), int(last) + 1):
        played = play(seed, MUTATED)
        broken = {one.invariant: one.violations[:1] for one in played.checks if not one.passed}
        facts = {"seed": seed, "work": played.work, "faults": played.faults, "broken": broken}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        if broken.keys() & set(invariants) if invariants else broken:
            break


if __name__ == "__main__":
    main(sys.argv[1:])
