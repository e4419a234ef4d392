"""Mutants of agents: of how they ask, answer and settle."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
