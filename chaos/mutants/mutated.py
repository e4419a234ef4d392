"""The command ``python -m chaos.mutants.mutated NAME MODULE ARGUMENTS``: run a module with a mutant."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from chaos.mutants.mutant import put_in
from chaos.mutants.table import read_mutant


def main(arguments: Sequence[str]) -> None:
    """Install the mutant named first in `arguments`, and run the module named second with the other arguments.

    Raises:
        SetupError: when there is no such mutant.
    """
    name, module, *rest = arguments
    put_in(read_mutant(name))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
