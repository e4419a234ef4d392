"""The speed of no-op tasks beside the task queues that people use, each at its fastest safe settings."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from benchmarks.charts import Chart, times
from benchmarks.machine import version_of
from benchmarks.parts.pace import Paces, figures, paces, raw, speed, speed_bars
from benchmarks.parts.sides import BY_HAND, OTHERS, Side, one_round, rotated
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.others import Other
from benchmarks.size import Size
from benchmarks.stage import ProgramFailed, Stage
from benchmarks.verdict import Findings

NAME = "others"
SIDES = (*BY_HAND, *OTHERS)
MOST_REASON = 300

Rounds = dict[Side, list[dict[str, Any]]]


def missing(other: Other) -> str:
    """Return a text that names the packages that a side lacks; empty when the side can run."""
    absent = [name for name in other.packages if importlib.util.find_spec(name.replace("-", "_")) is None]
    return f"not installed: {', '.join(absent)} (make bench installs them)" if absent else ""


async def measure(stage: Stage, size: Size) -> tuple[Rounds, dict[Side, str]]:
    """Measure alternating rounds of all sides; return them, and the reason for each side without any."""
    reasons = {side: reason for side, other in OTHERS.items() if (reason := missing(other))}
    found: Rounds = {side: [] for side in SIDES}
    order = Order(Mode.BURST, size.warm_up, size.others_tasks)
    for number in range(size.others_rounds):
        for side in rotated(SIDES, number):
            if side in reasons:
                continue
            try:
                found[side].append(await one_round(stage, side, order))
            except ProgramFailed as error:
                if side not in OTHERS:
                    raise
                reasons[side] = "; ".join([str(error), *getattr(error, "__notes__", [])])[-MOST_REASON:]
                found[side].clear()
    return found, reasons


def notes(reasons: Mapping[Side, str]) -> tuple[str, ...]:
    """Return the settings and versions of each side, and the reasons of those that could not run."""
    lines = []
    for side, other in OTHERS.items():
        versions = ", ".join(f"{name} {version_of(name)}" for name in other.packages)
        settings = "; ".join(f"{name}: {_shown(value)}" for name, value in other.settings.items())
        lines.append(f"{side.value} ({versions}): {settings}")
        if side in reasons:
            lines.append(f"{side.value} could not be measured: {' '.join(reasons[side].split())}")
    return tuple(lines)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def charts(found: Paces) -> tuple[Chart, ...]:
    """Return a chart of the speed of all sides."""
    beside = [side for side in OTHERS if side in found]
    if not beside:
        return ()
    fastest = max(beside, key=lambda side: speed(found, side))
    ahead = times(speed(found, Side.CODITECT) / speed(found, fastest))
    return (speed_bars(found, name=NAME, title=f"No-op tasks with a result: {ahead} {fastest.value}, the next queue"),)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure all sides, without a verdict: there is no target beside others."""
    rounds, reasons = await measure(stage, size)
    found = paces(rounds)
    return Findings(NAME, (), figures(found), raw(found), charts(found), notes(reasons), complete=not reasons)
