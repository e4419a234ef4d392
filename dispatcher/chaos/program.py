"""The functions behind `coditect chaos`, which do the chaos run of each seed, with real processes or simulated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from coditect.aio.loop import run_loop
from coditect.errors import InputError
from dispatcher.chaos.faults.schedule import kinds_with
from dispatcher.chaos.mutants.hunt import play_seeds
from dispatcher.chaos.mutants.mutant import Mutant
from dispatcher.chaos.mutants.table import read_mutant
from dispatcher.chaos.run import RunOrder, RunVerdict, run
from dispatcher.chaos.simulation import Played, play
from dispatcher.chaos.testbed import StoreKind

FEWEST_SIDE_BY_SIDE = 8


@dataclass(frozen=True, slots=True)
class Hunted:
    """The outcome of the simulated run of one seed, with a mutant (a planted mistake) in the product."""

    mutant: Mutant
    seed: int
    broken: dict[str, list[str]]
    """The violated invariants by name, each with examples."""
    passed = False

    @property
    def caught(self) -> bool:
        """Tell whether one of the invariants that the mutant should violate was violated."""
        return bool(self.mutant.invariants & self.broken.keys())

    def lines(self) -> list[str]:
        """Return the outcome of the seed as lines for a person."""
        told = [f"{'FAIL' if self.broken else 'pass'}  seed {self.seed}, with {self.mutant.name}"]
        return told + [f"        {invariant}: {violations[0]}" for invariant, violations in self.broken.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the outcome of the seed as JSON values, for programs."""
        return {"seed": self.seed, "mutant": self.mutant.name, "caught": self.caught, "broken": self.broken}


def rehearse(
    *,
    seeds: Sequence[int],
    seconds: float,
    folder: Path,
    kinds: Sequence[str],
    mutant: str,
    simulate: bool,
    store: str,
    say: Callable[[str], None],
) -> Iterator[RunVerdict | Played | Hunted]:
    """Do each seed's chaos run, real or simulated, and yield its verdict; with a simulated mutant until it is caught.

    Raises:
        InputError: when there is no such kind of fault on this store, or the simulation is asked for another store.
        SetupError: when there is no such mutant.
        MissingServer, StartFailed, AlreadyUp: when the servers or processes of a real run cannot start.
    """
    place = StoreKind(store)
    known = kinds_with(foundationdb=place is StoreKind.FOUNDATIONDB)
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise InputError("There is no such kind of fault", given=unknown[0], known=tuple(known))
    if simulate:
        if place is not StoreKind.SQLITE:
            raise InputError("The simulation has a store of its own, in memory; leave the store out", store=store)
        return _hunted(read_mutant(mutant), seeds) if mutant else _simulated(seeds)
    order = RunOrder(0, seconds, folder, kinds=tuple(kinds) or tuple(known), mutant=mutant, store=place)
    return _real(seeds, order, say)


def _simulated(seeds: Sequence[int]) -> Iterator[Played]:
    if len(seeds) < FEWEST_SIDE_BY_SIDE:
        yield from map(play, seeds)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        yield from processes.map(play, seeds)


def _hunted(mutant: Mutant, seeds: Sequence[int]) -> Iterator[Hunted]:
    async def play_all() -> list[dict[str, Any]]:
        return [told async for told in play_seeds(mutant.name, seeds[0], seeds[-1], sorted(mutant.invariants))]

    for told in run_loop(play_all()):
        yield Hunted(mutant, told["seed"], told["broken"])


def _real(seeds: Sequence[int], order: RunOrder, say: Callable[[str], None]) -> Iterator[RunVerdict]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # everything is lost and found all the time
    try:
        for seed in seeds:
            yield run_loop(run(replace(order, seed=seed, folder=order.folder / f"seed-{seed}"), say=say))
    finally:
        logging.disable(before)
