"""The program that plays seeds of the simulation one by one, and prints each outcome as a line of JSON.

``python -m chaos.mutants.seeds FIRST LAST INVARIANT`` ends after the first seed that breaks the invariant. A
mutant can be put only into a program of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from chaos.simulation import play
from chaos.simulation_plan import MUTATED

MODULE = "chaos.mutants.seeds"


def main(arguments: Sequence[str]) -> None:
    """Simulate runs of seeds FIRST to LAST, print outcomes as JSON, and stop when INVARIANT is violated."""
    first, last, invariant = arguments
    for seed in range(int(first), int(last) + 1):
        played = play(seed, MUTATED)
        broken = {one.invariant: one.violations[:1] for one in played.checks if not one.passed}
        facts = {"seed": seed, "work": played.work, "faults": played.faults, "broken": broken}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        if invariant in broken:
            break


if __name__ == "__main__":
    main(sys.argv[1:])
