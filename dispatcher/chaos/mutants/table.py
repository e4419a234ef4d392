"""The table of all mutants, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from coditect.errors import SetupError
from dispatcher.chaos.mutants import agent, collaboration, coordination, ledger, mends, shards, time
from dispatcher.chaos.mutants.mutant import Mutant

ALL = (
    *ledger.MUTANTS,
    *shards.MUTANTS,
    *time.MUTANTS,
    *agent.MUTANTS,
    *mends.MUTANTS,
    *coordination.MUTANTS,
    *collaboration.MUTANTS,
)
MUTANTS: Mapping[str, Mutant] = MappingProxyType({one.name: one for one in ALL})


def read_mutant(name: str) -> Mutant:
    """Return the mutant with the given name from the table.

    Raises:
        SetupError: when there is no mutant of the name.
    """
    if name not in MUTANTS:
        raise SetupError("There is no such mutant", given=name, known=tuple(MUTANTS))
    return MUTANTS[name]
