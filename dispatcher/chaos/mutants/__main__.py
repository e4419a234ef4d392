"""``python -m dispatcher.chaos.mutants [NAME ...]``: catches every mutant, or those that are named, as the table says.

Ends with 1 when one was not caught. Mutants are hunted side by side, one for each processor.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from coditect.loop import run_loop
from dispatcher.chaos.mutants.hunt import Catch, hunt
from dispatcher.chaos.mutants.mutant import Mutant
from dispatcher.chaos.mutants.table import MUTANTS, read_mutant


async def hunt_all(mutants: Sequence[Mutant]) -> list[Catch]:
    """Hunts all of them, and says of each what caught it."""
    places = asyncio.Semaphore(os.cpu_count() or 1)

    async def one(mutant: Mutant) -> Catch:
        async with places:
            catch = await hunt(mutant)
        sys.stdout.write(f"{catch.line}\n")
        sys.stdout.flush()
        return catch

    return await asyncio.gather(*map(one, mutants))


def main(names: Sequence[str]) -> int:
    """The exit code. Raises: SetupError for a mutant that there is not."""
    mutants = [read_mutant(name) for name in names] or list(MUTANTS.values())
    caught = sum(bool(catch.by) for catch in run_loop(hunt_all(mutants)))
    sys.stdout.write(f"{caught} of {len(mutants)} mutants were caught\n")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
