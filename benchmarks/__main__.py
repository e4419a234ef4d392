"""`python -m benchmarks [--quick] [--only NAME]... [--profile]`: measures, prints a table, writes JSON.

Exit code 0 when every target is met (or with --quick, whose figures are too few to judge), else 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import loop
from benchmarks.report import findings_as_markdown, write
from benchmarks.runner import PARTS, now, run_parts, run_profile
from benchmarks.size import FULL, QUICK, Size
from benchmarks.stage import ROOT
from benchmarks.verdict import Findings

RESULTS = ROOT / "benchmarks" / "results"


def parser() -> argparse.ArgumentParser:
    """The options."""
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
        "--profile", action="store_true", help="profile client and agent of a throughput round instead"
    )
    return options


def tell(found: Findings) -> None:
    """Shows a part that is done."""
    print(findings_as_markdown(found), flush=True)


def measure(names: Sequence[str], size: Size, command: str) -> int:
    """Runs the parts, writes the report, gives the exit code."""
    report = loop.run(run_parts(names, size, command=command, tell=tell))
    for file in write(report, RESULTS):
        print(f"wrote {file.relative_to(ROOT)}")
    return 0 if report.ok or size is QUICK else 1


def main(arguments: Sequence[str]) -> int:
    """The command."""
    chosen = parser().parse_args(arguments)
    size = QUICK if chosen.quick else FULL
    if chosen.profile:
        RESULTS.mkdir(parents=True, exist_ok=True)
        files = [RESULTS / f"{now()}-{process}.pstats" for process in ("client", "agent")]
        print(loop.run(run_profile(size, files)))
        return 0
    command = " ".join(["python -m benchmarks", *arguments])
    return measure(chosen.only or list(PARTS), size, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
