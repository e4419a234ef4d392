"""Workflows: graphs of no-op nodes beside the task queues that people use, all on the same servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.charts import Bars, Chart, times
from benchmarks.figures import median
from benchmarks.machine import version_of
from benchmarks.parts.graph_sides import DRIVERS, GRAPH_OTHERS, SIDES, WORKERS, ordered, staff
from benchmarks.parts.others import missing
from benchmarks.parts.sides import Side, rotated
from benchmarks.programs.graphs import Graph, GraphOrder, chain, fan, layered
from benchmarks.size import Size
from benchmarks.stage import ProgramFailed, Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict

NAME = "workflows"
WARM_UPS = {"fan": fan(50), "chain": chain(10), "layered": layered(3, 20), "chains": chain(10)}
AT_ONCE = {"chains": 20}
"""How many of a graph run side by side, where it is more than one."""
_WIDE = {Side.RQ: 5.0, Side.CELERY: 4.0, Side.TASKIQ: 2.5, Side.DASK: 3.0}
LEAST = {"fan": _WIDE, "layered": _WIDE, "chains": {Side.TASKIQ: 3.0}}
"""The targets, by graph, as multiples of the nodes per second of each side."""
MOST_HOP = 0.7
"""The target for a single chain, as a share of the best of the other sides that keep what they are given."""
UNSAFE = (Side.DASK,)
"""The sides that lose all with their scheduler."""
BLOCKING = (Side.CELERY, Side.RQ)
"""The sides whose client waits for one graph before it starts the next."""
MORE_ROUNDS = {"chain": 2}
"""The factor of the number of rounds, by graph: a chain's runs are short, and its sides are close to each other."""
MOST_REASON = 300

Seconds = dict[str, dict[Side, list[float]]]
"""The seconds of each run, by graph and side."""


def graphs(size: Size) -> tuple[Graph, ...]:
    """Return the graphs to measure: a fan, a chain, and layers, of the run's size."""
    return fan(size.graph_width), chain(size.graph_length), layered(size.graph_layers, size.graph_width // 10)


def trials(size: Size) -> tuple[Graph, ...]:
    """Return the graphs, and the chain once more, of which many run at once."""
    return *graphs(size), replace(chain(size.graph_length), name="chains")


async def measure(stage: Stage, size: Size) -> tuple[Seconds, dict[Side, str]]:
    """Measure one graph after the other; return the seconds, and the reason for each side that lacks rounds."""
    reasons = {side: reason for side, other in GRAPH_OTHERS.items() if (reason := missing(other))}
    sides = [side for side in SIDES if side not in reasons]
    found: Seconds = {}
    for graph in trials(size):
        able = [side for side in sides if graph.name not in AT_ONCE or side not in BLOCKING]
        found[graph.name], failed = await _rounds(stage, size, graph, able)
        reasons |= failed
    return found, reasons


async def _rounds(
    stage: Stage, size: Size, graph: Graph, sides: Sequence[Side]
) -> tuple[dict[Side, list[float]], dict[Side, str]]:
    """Measure alternating rounds of all sides on a graph; a side that fails takes no further part in it.

    The sides' rounds are seconds apart, because a machine can be half as fast again within minutes.
    """
    found: dict[Side, list[float]] = {}
    failed: dict[Side, str] = {}
    for number in range(size.graph_rounds * MORE_ROUNDS.get(graph.name, 1)):
        for side in rotated(sides, number):
            if side in failed:
                continue
            many = AT_ONCE.get(graph.name, 1)
            order = GraphOrder(DRIVERS[side], WARM_UPS[graph.name], graph, size.graph_runs, many)
            try:
                async with staff(stage, side):
                    report: dict[str, Any] = await ordered(stage, order)
            except ProgramFailed as error:
                if side is Side.CODITECT:
                    raise
                text = "; ".join([str(error), *getattr(error, "__notes__", [])])
                failed[side] = f"{graph.name}: {text[-MOST_REASON:]}"
            else:
                found.setdefault(side, []).extend(report["seconds"])
    return found, failed


def nodes_per_second(graph: Graph, seconds: Sequence[float]) -> float:
    """Return the nodes per second, the median of the runs."""
    return median([graph.nodes * AT_ONCE.get(graph.name, 1) / run_seconds for run_seconds in seconds])


def ms_per_hop(graph: Graph, seconds: Sequence[float]) -> float:
    """Return the milliseconds of one layer; in a chain a layer is one node."""
    return median([1000 * run_seconds / len(graph.widths) for run_seconds in seconds])


def verdicts(size: Size, found: Seconds) -> tuple[Verdict, ...]:
    """Compare our speed with each other side's, and for the chain our time with the best other side's."""
    judged = []
    for graph in trials(size):
        sides = found.get(graph.name, {})
        if Side.CODITECT not in sides:
            continue
        if graph.name == "chain":
            judged += _chain_verdict(graph, sides)
            continue
        ours = nodes_per_second(graph, sides[Side.CODITECT])
        judged += [
            Verdict(f"{graph.name}, nodes/s: ours / {side.value}", ours / nodes_per_second(graph, sides[side]),
                    Bound.AT_LEAST, least, "x")
            for side, least in LEAST[graph.name].items()
            if side in sides
        ]  # fmt: skip
    return tuple(judged)


def _chain_verdict(graph: Graph, sides: Mapping[Side, Sequence[float]]) -> list[Verdict]:
    apart = (Side.CODITECT, *UNSAFE)
    others = [ms_per_hop(graph, seconds) for side, seconds in sides.items() if side not in apart]
    if not others:
        return []
    share = ms_per_hop(graph, sides[Side.CODITECT]) / min(others)
    return [Verdict("chain, ms per hop: ours / the best of the others", share, Bound.AT_MOST, MOST_HOP, "x")]


def figures(size: Size, found: Seconds) -> tuple[Figure, ...]:
    """Return nodes per second, and milliseconds per layer, of every graph and side, by the median round."""
    shown = []
    for graph in trials(size):
        for side, seconds in found.get(graph.name, {}).items():
            many = f"{AT_ONCE[graph.name]} " if graph.name in AT_ONCE else ""
            label = f"{many}{graph.name} of {graph.nodes:,}, {side.value}"
            shown.append(Figure(f"{label}: nodes per second", nodes_per_second(graph, seconds), "/s"))
            shown.append(Figure(f"{label}: per layer", ms_per_hop(graph, seconds), "ms"))
    return tuple(shown)


def charts(size: Size, found: Seconds) -> tuple[Chart, ...]:
    """Return charts of nodes per second for the wide graphs, and of milliseconds per hop for the chain."""
    drawn: list[Chart] = []
    for graph in graphs(size):
        sides = found[graph.name]
        others = [side for side in sides if side is not Side.CODITECT]
        if Side.CODITECT not in sides or not others:
            continue
        is_chain = graph.name == "chain"
        values = {side: (ms_per_hop if is_chain else nodes_per_second)(graph, sides[side]) for side in sides}
        best = (min if is_chain else max)(others, key=lambda side: values[side])
        ahead = times(values[Side.CODITECT] / values[best])
        unit = "ms per hop" if is_chain else "nodes per second"
        title = f"{graph.name.capitalize()} of {graph.nodes:,} nodes: {ahead} {best.value}, the best of the others"
        names = [side.value for side in values]
        drawn.append(Bars(f"workflow-{graph.name}", title, unit, names, {unit: [*values.values()]}, ()))
    return tuple(drawn)


def notes(reasons: Mapping[Side, str]) -> tuple[str, ...]:
    """Return the facts that a reader must know of each side, and the reasons of those that could not run."""
    lines = [
        f"every side: {WORKERS} worker processes; ours with one dispatcher, its ledger in SQLite, synchronous=FULL",
        "Celery: chain and chord; Taskiq: pipelines with map. Neither has edges between two layers of several nodes: "
        "there a layer comes after the whole one before it",
        "Dask keeps all in memory: what its scheduler has is lost with it, so it is no measure for a chain's hop",
    ]
    for side, other in GRAPH_OTHERS.items():
        versions = ", ".join(f"{name} {version_of(name)}" for name in other.packages)
        lines.append(f"{side.value}: {versions}; worker: {' '.join(other.worker)}")
        if side in reasons:
            lines.append(f"{side.value} could not be measured: {' '.join(reasons[side].split())}")
    return tuple(lines)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure graphs on all sides, and judge the speed of Coditect's side."""
    found, reasons = await measure(stage, size)
    raw = {graph: {side.value: seconds for side, seconds in sides.items()} for graph, sides in found.items()}
    return Findings(
        NAME,
        verdicts(size, found),
        figures(size, found),
        raw,
        charts(size, found),
        notes(reasons),
        complete=not reasons,
    )
