"""The command ``python -m chaos.mutants [NAME ...]``, which checks that the simulation catches the mutants.

The exit code is 1 when a mutant was not caught. Mutants are hunted side by side, one for each processor. Caught
mutants are recorded: the next call hunts only the others, unless the code has changed since.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from chaos.mutants.hunt import ROOT, Catch, hunt
from chaos.mutants.mutant import Mutant
from chaos.mutants.table import MUTANTS, read_mutant
from coditect.aio.loop import run_loop

CAUGHT = ROOT / ".coditect" / "mutants"
CODE = ("chaos", "coditect", "dispatcher")
SUFFIXES = (".lua", ".py")


def fingerprint(root: Path) -> str:
    """Return a hash of the code in chaos, coditect and dispatcher, which the record of caught mutants is valid for."""
    digest = sha256()
    for file in sorted(one for folder in CODE for one in (root / folder).rglob("*") if one.suffix in SUFFIXES):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class HuntProgress:
    """The file that records which mutants were caught in the present code.

    The file has the code's fingerprint, and then a line for each mutant.
    """

    def __init__(self, file: Path, code: str) -> None:
        self._file = file
        written = file.read_text().split() if file.exists() else []
        self.caught = set(written[1:]) if written[:1] == [code] else set[str]()
        if not self.caught:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{code}\n")

    def add(self, name: str) -> None:
        """Record in the file that a mutant was caught."""
        self.caught.add(name)
        with self._file.open("a") as file:
            file.write(f"{name}\n")


async def hunt_all(mutants: Sequence[Mutant], progress: HuntProgress) -> list[Catch]:
    """Hunt the given mutants side by side; print and return the outcomes; record caught ones in `progress`."""
    places, done = asyncio.Semaphore(os.cpu_count() or 1), 0

    async def one(mutant: Mutant) -> Catch:
        nonlocal done
        async with places:
            catch = await hunt(mutant)
        done += 1
        if catch.by:
            progress.add(mutant.name)
        _say(f"{done:>3} of {len(mutants)}  {catch.line}")
        return catch

    return await asyncio.gather(*map(one, mutants))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(names: Iterable[str]) -> int:
    """Hunt the named mutants, or all that were not caught before; return 0 when all were caught, else 1.

    Raises:
        SetupError: when there is no such mutant.
    """
    progress = HuntProgress(CAUGHT, fingerprint(ROOT))
    named = [read_mutant(name) for name in names]
    mutants = named or [one for one in MUTANTS.values() if one.name not in progress.caught]
    if not named and progress.caught:
        _say(f"{len(progress.caught)} were caught before, in the same code; to hunt all again: rm {CAUGHT}")
    caught = sum(bool(catch.by) for catch in run_loop(hunt_all(mutants, progress)))
    _say(f"{caught} of {len(mutants)} mutants were caught")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
