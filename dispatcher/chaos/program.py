"""What `coditect chaos` calls: seeds, on real processes or simulated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from coditect.errors import InputError
from coditect.loop import run_loop
from dispatcher.chaos.faults import KINDS
from dispatcher.chaos.run import Order, Verdict, run
from dispatcher.chaos.simulation import Plan, Played, play
from dispatcher.witness.watch import PLANT_VARIABLE, read_planted

FEWEST_SIDE_BY_SIDE = 8
PLANTED_SECONDS = 60.0
"""Virtual time with faults of a simulated seed with a bug in it."""


def rehearse(
    *,
    seeds: Sequence[int],
    seconds: float,
    folder: Path,
    kinds: Sequence[str],
    plant: str,
    simulate: bool,
    say: Callable[[str], None],
) -> Iterator[Verdict | Played]:
    """Plays the seeds and judges each; simulated ones side by side, on all processors.

    Raises: InputError for a kind of fault that there is not, SetupError for such a bug; MissingServer, StartFailed,
    AlreadyUp.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError("There is no such kind of fault", given=unknown[0], known=tuple(KINDS))
    planted = read_planted({PLANT_VARIABLE: plant})
    if simulate:
        plan = Plan(planted=planted)
        return _simulated(seeds, replace(plan, seconds=PLANTED_SECONDS) if plant else plan)
    order = Order(0, seconds, folder, kinds=tuple(kinds) or tuple(KINDS), plant=plant)
    return _real(seeds, order, say)


def _simulated(seeds: Sequence[int], plan: Plan) -> Iterator[Played]:
    if len(seeds) < FEWEST_SIDE_BY_SIDE:
        yield from (play(seed, plan) for seed in seeds)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        yield from processes.map(play, seeds, repeat(plan))


def _real(seeds: Sequence[int], order: Order, say: Callable[[str], None]) -> Iterator[Verdict]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # everything is lost and found all the time
    try:
        for seed in seeds:
            yield run_loop(run(replace(order, seed=seed, folder=order.folder / f"seed-{seed}"), say=say))
    finally:
        logging.disable(before)
