"""What a person reads of the healing demo: each run as it ends, and figures for each kind of fault."""

from __future__ import annotations

import os
from collections.abc import Sequence

from agents.demo.healing.runs import HealingRun

LEAST_FIXED = 0.95


def describe_run(run: HealingRun) -> str:
    """Return a run as text: its fault, and a line for each round with votes, remedy, and what was wrong afterwards."""
    end = f"NOT FIXED: {run.failure}" if run.failure else f"well after {run.seconds:.1f} s"
    lines = [f"{run.number:>3}  {run.kind}: {end}"]
    for number, one in enumerate(run.rounds, 1):
        why = f"; then {one.why}" if one.why else ""
        lines.append(f"       round {number}: votes {', '.join(one.votes)} -> {one.cause}: {one.done}{why}")
    return "\n".join(lines)


def describe_all(runs: Sequence[HealingRun], *, seconds: float) -> str:
    """Return text about all runs: a table by kind of fault, the runs that were not fixed, and the share that was."""
    kinds = sorted({run.kind for run in runs})
    rows = [("fault", "runs", "fixed", "p50 s", "p99 s"), *(_row(kind, runs) for kind in kinds), _row("all", runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (tuple(zip(row, widths, strict=True)) for row in rows)
    ]
    overruled = sum(any(vote != one.cause for vote in one.votes) for run in runs for one in run.rounds)
    longer = sum(len(run.rounds) > 1 for run in runs)
    load = os.getloadavg()[0]
    lines += [f"not fixed: run {run.number}, {run.kind}: {run.failure} ({run.workflow})" for run in runs if run.failure]
    lines.append(f"{overruled} votes overruled a doctor, {longer} runs took more than one round")
    lines.append(f"{fixed_share(runs):.0%} fixed without a person, in {seconds:.0f} s, load {load:.1f}")
    return "\n".join(lines)


def fixed_share(runs: Sequence[HealingRun]) -> float:
    """Return the share of runs whose service was fixed without a person."""
    return sum(not run.failure for run in runs) / max(1, len(runs))


def _row(kind: str, runs: Sequence[HealingRun]) -> tuple[str, ...]:
    of = [run for run in runs if kind in ("all", run.kind)]
    times = sorted(run.seconds for run in of if not run.failure)
    shares = (f"{times[min(len(times) - 1, int(share * len(times)))]:.1f}" if times else "-" for share in (0.5, 0.99))
    return kind, str(len(of)), str(len(times)), *shares
