"""What `coditect chaos` calls: one seed, on real processes or simulated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from coditect.errors import InputError
from coditect.loop import run_loop
from dispatcher.chaos.faults import KINDS
from dispatcher.chaos.run import Order, Verdict, run
from dispatcher.chaos.simulation import Plan, Played, play
from dispatcher.witness.watch import PLANT_VARIABLE, read_planted

PLANTED_SECONDS = 30.0
"""Virtual time with faults of a simulated seed with a bug in it."""


def rehearse(
    *,
    seed: int,
    seconds: float,
    folder: Path,
    kinds: Sequence[str],
    plant: str,
    simulate: bool,
    say: Callable[[str], None],
) -> Verdict | Played:
    """Plays one seed and judges it.

    Raises: InputError for a kind of fault that there is not, SetupError for such a bug; MissingServer, StartFailed,
    AlreadyUp.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError("There is no such kind of fault", given=unknown[0], known=tuple(KINDS))
    planted = read_planted({PLANT_VARIABLE: plant})
    if simulate:
        plan = Plan(planted=planted)
        return play(seed, replace(plan, seconds=PLANTED_SECONDS) if plant else plan)
    logging.disable(logging.CRITICAL)  # everything is lost and found all the time
    order = Order(seed=seed, seconds=seconds, folder=folder, kinds=tuple(kinds) or tuple(KINDS), plant=plant)
    return run_loop(run(order, say=say))
