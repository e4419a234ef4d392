"""`python -m chaos`: break a private fleet by a seed (kill -9, stop, wipe, restart), and check every promise.

Starts its own RabbitMQ, Redis, store, dispatchers and agents, and stops them. Exits 1 if a promise was broken, or if
the run proves nothing: fewer than one fault in 2 s, a kind of fault that never hit work in flight, or, in a minute of
all faults, a promise with nothing to check.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chaos.faults.schedule import kinds_with
from chaos.mutants.hunt import play_seeds
from chaos.mutants.mutant import Mutant
from chaos.mutants.table import read_mutant
from chaos.run import RunOrder, RunVerdict, run
from chaos.simulation import Played, play
from chaos.testbed import StoreKind
from coditect.aio.loop import run_loop
from coditect.cli.terminal.failure import describe
from coditect.errors import CoditectError, InputError

FEWEST_SIDE_BY_SIDE = 8
FOLDER = Path(".coditect") / "chaos"
TABLE, JSON = "table", "json"


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
        """Tell whether the invariant that the mutant should violate was violated."""
        return self.mutant.caught_by in self.broken

    def lines(self) -> list[str]:
        """Return the outcome of the seed as lines for a person."""
        told = [f"{'FAIL' if self.broken else 'pass'}  seed {self.seed}, with {self.mutant.name}"]
        return told + [f"        {invariant}: {violations[0]}" for invariant, violations in self.broken.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the outcome of the seed as JSON values, for programs."""
        return {"seed": self.seed, "mutant": self.mutant.name, "caught": self.caught, "broken": self.broken}


Report = RunVerdict | Played | Hunted


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    options = argparse.ArgumentParser(
        prog="python -m chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--seed", type=int, default=1, help="decides what is broken, and when (default: %(default)s)")
    add("--seeds", type=_positive, default=1, help="how many seeds to play, one after the other (default: %(default)s)")
    add("--minutes", type=float, default=5.0, help="how long things are broken (default: %(default)s)")
    add("--kind", action="append", default=[], help="only this kind of fault, such as broker.wipe; may be repeated")
    add("--mutant", default="", help="put a mutant into every process: the run passes if it is caught")
    add("--simulate", action="store_true", help="in this process, in virtual time: hundreds of seeds a minute")
    add(
        "--store",
        choices=[kind.value for kind in StoreKind],
        default=StoreKind.SQLITE.value,
        help="the store of the dispatchers; with fdb, processes of FoundationDB are broken, too",
    )
    add("--folder", type=Path, default=FOLDER, help="where logs and histories go; emptied first (default: %(default)s)")
    add("--output", choices=[TABLE, JSON], default=TABLE)
    return options


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def reports(given: argparse.Namespace) -> Iterator[Report]:
    """Do each seed's chaos run, real or simulated, and yield its verdict; with a simulated mutant until it is caught.

    Raises:
        InputError: when there is no such kind of fault on this store, or the simulation is asked for another store.
        SetupError: when there is no such mutant.
        MissingServer, StartFailed, AlreadyUp: when the servers or processes of a real run cannot start.
    """
    seeds, store = range(given.seed, given.seed + given.seeds), StoreKind(given.store)
    known = kinds_with(foundationdb=store is StoreKind.FOUNDATIONDB)
    unknown = [kind for kind in given.kind if kind not in known]
    if unknown:
        raise InputError("There is no such kind of fault", given=unknown[0], known=tuple(known))
    if given.simulate:
        if store is not StoreKind.SQLITE:
            raise InputError("The simulation has a store of its own, in memory; leave the store out", store=store.value)
        return _hunted(read_mutant(given.mutant), seeds) if given.mutant else _simulated(seeds)
    kinds, folder = tuple(given.kind or known), given.folder.absolute()
    return _real(seeds, RunOrder(0, 60 * given.minutes, folder, kinds=kinds, mutant=given.mutant, store=store))


def _simulated(seeds: Sequence[int]) -> Iterator[Played]:
    if len(seeds) < FEWEST_SIDE_BY_SIDE:
        yield from map(play, seeds)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        yield from processes.map(play, seeds)


def _hunted(mutant: Mutant, seeds: Sequence[int]) -> Iterator[Hunted]:
    async def play_all() -> list[dict[str, Any]]:
        return [told async for told in play_seeds(mutant, seeds[0], seeds[-1])]

    for told in run_loop(play_all()):
        yield Hunted(mutant, told["seed"], told["broken"])


def _real(seeds: Sequence[int], order: RunOrder) -> Iterator[RunVerdict]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # everything is lost and found all the time
    try:
        for seed in seeds:
            yield run_loop(run(replace(order, seed=seed, folder=order.folder / f"seed-{seed}"), say=_say))
    finally:
        logging.disable(before)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def rehearse(given: argparse.Namespace) -> int:
    """Do the chaos runs, write each verdict to stdout, and return 0 if all passed, or if the mutant was caught."""
    found: list[Report] = []
    for report in reports(given):
        found.append(report)
        if given.output == TABLE:
            sys.stdout.write("\n".join(report.lines()) + "\n")
        if report.caught:
            break
    if given.output == JSON:
        sys.stdout.write(json.dumps([report.as_json() for report in found], indent=2) + "\n")
    if not given.mutant:
        return 0 if all(report.passed for report in found) else 1
    caught = found[-1].caught
    _say("the mutant was caught" if caught else "the mutant was not caught")
    return 0 if caught else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    try:
        return rehearse(parser().parse_args(arguments))
    except CoditectError as error:
        _say(describe(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
