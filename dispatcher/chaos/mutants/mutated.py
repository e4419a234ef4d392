"""``python -m dispatcher.chaos.mutants.mutated NAME MODULE ARGUMENTS``: runs a module with a mutant in it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from dispatcher.chaos.mutants.mutant import put_in
from dispatcher.chaos.mutants.table import read_mutant

MODULE = "dispatcher.chaos.mutants.mutated"


def command(mutant: str, module: Sequence[str]) -> list[str]:
    """How to run a module, named first, with its arguments: with a mutant in it, or as it is when none is named."""
    return [sys.executable, "-m", *((MODULE, mutant) if mutant else ()), *module]


def main(arguments: Sequence[str]) -> None:
    """Puts the mutant in and becomes the module. Raises: SetupError for a mutant that there is not."""
    name, module, *rest = arguments
    put_in(read_mutant(name))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
