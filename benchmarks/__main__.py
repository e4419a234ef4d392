"""`python -m benchmarks [--quick] [--only NAME]... [--profile]`: measure, print tables, write JSON, draw plots.

The exit code is 0 when every target is met (or with --quick, whose figures are too few to judge), else 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.plots import can_draw, draw
from benchmarks.profiling import NoProfile, shares_as_markdown
from benchmarks.report import findings_as_markdown, write
from benchmarks.runner import PARTS, USUAL, now, run_parts, run_profile
from benchmarks.size import FULL, QUICK, Size
from benchmarks.stage import ROOT
from benchmarks.verdict import Findings
from coditect.aio.loop import run_loop

RESULTS = ROOT / "benchmarks" / "results"
PLOTS = ROOT / "benchmarks" / "plots"
"""The plots of full runs, which the pages show; the plots of a quick run stay beside its results."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures what Coditect costs.")
    options.add_argument("--quick", action="store_true", help="a tenth of everything: a look, not a result")
    options.add_argument(
        "--only",
        action="append",
        choices=tuple(PARTS),
        metavar="NAME",
        help=f"one of {', '.join(PARTS)}; may be repeated",
    )
    options.add_argument(
        "--profile",
        action="store_true",
        help="show where client and agent of a throughput round spend their time instead",
    )
    return options


def tell(found: Findings) -> None:
    """Print the findings of a part that is done."""
    print(findings_as_markdown(found), flush=True)


def measure(names: Sequence[str], size: Size, command: str) -> int:
    """Run the named parts, write the report, draw the plots, and return the exit code."""
    report = run_loop(run_parts(names, size, command=command, tell=tell))
    files = [*write(report, RESULTS)]
    charts = [chart for found in report.findings for chart in found.charts]
    if can_draw():
        files += draw(charts, PLOTS if size is FULL else RESULTS / "plots")
    elif charts:
        print("no plots: matplotlib is not installed; `make bench` installs it")
    for file in files:
        print(f"wrote {file.relative_to(ROOT)}")
    return 0 if report.ok or size is QUICK else 1


def profile(size: Size) -> int:
    """Profile a round, print the shares of time by room, and return the exit code."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    time = now()
    files = {process: RESULTS / f"{time}-{process}.speedscope.json" for process in ("client", "agent")}
    try:
        print(shares_as_markdown(run_loop(run_profile(size, files))))
    except NoProfile as error:
        print(error, file=sys.stderr)
        return 1
    for file in files.values():
        print(f"wrote {file.relative_to(ROOT)}: open it on https://www.speedscope.app")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    chosen = parser().parse_args(arguments)
    size = QUICK if chosen.quick else FULL
    if chosen.profile:
        return profile(size)
    command = " ".join(["python -m benchmarks", *arguments])
    return measure(chosen.only or USUAL, size, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
