"""``python -m agents.demo.healing``: services meet eleven kinds of real faults, and a fleet mends them alone.

It starts private servers and a fleet below ``.coditect/demo``, has each service watched as
`coditect schedule heal` does, and injects one fault of each kind. ``--runs 100`` is `make healing`. The exit
code is 0 only when at least 95 % of the services are well again.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

from agents.demo.fleet import demo_folder, explain
from agents.demo.healing.faults import FAULTS, possible_faults
from agents.demo.healing.runs import (
    LEAST_FIXED,
    HealingOrder,
    HealingRun,
    describe_all,
    describe_run,
    fixed_share,
    heal_all,
    healing_fleet,
)
from agents.demo.healing.ward import enter_namespace
from agents.tester import STARTED_BY
from coditect.aio.loop import run_loop
from coditect.errors import CoditectError
from coditect.local.supervisor import guarded
from coditect.local.watchdog import new_marker

MODULE = "agents.demo.healing"
_say = partial(print, flush=True)


async def measure(root: Path, order: HealingOrder) -> list[HealingRun]:
    """Start a fleet, do all runs of a measurement on it, print how each ended, and return them.

    Raises:
        CoditectError: a server or an agent could not be started.
    """
    with demo_folder(root) as folder:
        async with healing_fleet(root, folder, seed=order.seed, say=_say) as fleet:
            _say(f"{order.runs} faults, {order.at_once} services at once, seed {order.seed}")
            return await heal_all(fleet, order, done=lambda run: _say(describe_run(run)))


def main() -> int:
    """Do the runs, print the figures, and return the exit code: 0 when at least 95 % were fixed without a person."""
    parser = ArgumentParser(prog=f"python -m {MODULE}", description="Watch a fleet mend services without a person.")
    parser.add_argument("--runs", type=int, default=0, help="how many faults (default: one of each kind)")
    parser.add_argument("--at-once", type=int, default=4, help="how many services at once (default: 4)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn by chance (default: 1)")
    options = parser.parse_args()
    enter_namespace([MODULE, *sys.argv[1:]])
    kinds = possible_faults()
    if missing := FAULTS.keys() - set(kinds):
        _say(f"Left out: {', '.join(missing)}. No small disk can be mounted here; it takes root, or `unshare --user`.")
    order = HealingOrder(options.seed, options.runs or len(kinds), options.at_once)
    marker, began, runs = new_marker(), time.monotonic(), list[HealingRun]()
    os.environ[STARTED_BY] = f"{marker}:services:"  # what this process starts ends with it, by whatever signal
    try:
        with guarded(marker):
            runs = run_loop(measure(Path(__file__).resolve().parents[3], order))
    except* CoditectError as errors:
        print(explain(errors, title="The healing could not run"))
    if runs:
        print("", describe_all(runs, seconds=time.monotonic() - began), sep="\n")
    return 0 if runs and fixed_share(runs) >= LEAST_FIXED else 1


if __name__ == "__main__":
    sys.exit(main())
