"""Larger workflows, and more of them: the time of ten times the nodes, and the memory of the dispatcher.

A workflow grows in two ways. A longer one has more layers. A wider one has larger layers: when a layer has more nodes
than may be under way, twice the agents' slots, its nodes go to their claim by the other way, through the backlog that
RQ holds. That costs a tenth more, whatever the size. With few slots, 10,000 nodes go that way as 100,000 do.

Two sizes are measured side by side, each on one core with servers, dispatcher, agents and client of its own. The
smaller one is repeated until the larger one has ended; then the cores are exchanged. A machine's speed changes by half
within minutes, and the larger size takes minutes: sizes that ran one after the other would meet different machines.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import geometric_mean, mean, median

from benchmarks.charts import Chart, Lines
from benchmarks.parts.graph_sides import DRIVERS
from benchmarks.parts.sides import Side
from benchmarks.parts.visit import Visit, visit
from benchmarks.programs.graphs import Graph, GraphOrder, chain, layered
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict

NAME = "workflow-size"
LAYERS = 10
SMALL = chain(10)
WARM_UP = layered(3, 20)
MOST_RUNS = 15
SHORTER = 0.4
"""The nodes of a visit (a measurement on one core) to the smaller size, as a share of those of the larger size.

Such visits are repeated until the visit to the larger size has ended. The visit that ends later does not count, because
it ran alone at its end.
"""
SERIES = {"wider": "one workflow of ten layers", "longer": "one of longer and longer", "more": "workflows of ten nodes"}
"""The names of the series in the plot."""
MOST_TIMES_FOR_TEN = 10.5
MOST_MEGABYTES = 250.0


class TooFewCores(RuntimeError):
    """The error of a machine with too few cores to measure two sizes side by side."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A size to measure: a graph, and the number of workflows of that graph."""

    name: str
    graph: Graph
    many: int = 1

    @property
    def nodes(self) -> int:
        """The number of nodes in all workflows."""
        return self.graph.nodes * self.many

    def order(self, nodes: int) -> GraphOrder:
        """Return an order for runs of about `nodes` nodes together."""
        runs = max(1, min(MOST_RUNS, nodes // self.nodes))
        return GraphOrder(DRIVERS[Side.CODITECT], WARM_UP, self.graph, runs, self.many)


@dataclass(frozen=True, slots=True)
class Grown:
    """The figures of a trial on one core; megabytes are the dispatcher's resident memory."""

    name: str
    nodes: int
    seconds: float
    most_megabytes: float
    times: float = 1.0
    """The time as a multiple of the size before: the geometric mean of `each`, in which a slower core cancels out."""
    each: tuple[float, ...] = ()
    """The ratio of each round, on the one core and then on the other."""


def wider(nodes: int) -> Trial:
    """Return a trial of one workflow of ten layers."""
    return Trial(f"{nodes:,} nodes in {LAYERS} layers", layered(LAYERS, nodes // LAYERS))


def longer(nodes: int, width: int) -> Trial:
    """Return a trial of one workflow whose layers have a certain size."""
    return Trial(f"{nodes:,} nodes in layers of {width}", layered(nodes // width, width))


def more(workflows: int) -> Trial:
    """Return a trial of many workflows of ten nodes each."""
    return Trial(f"{workflows:,} workflows of {SMALL.nodes}", SMALL, workflows)


def two_cores() -> tuple[int, int]:
    """Return the numbers of two cores that the calling process may use.

    Raises:
        TooFewCores: when there are fewer than two.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise TooFewCores("Two sizes are measured side by side, on a core each: run this where there are two cores.")
    return cores[0], cores[1]


async def side_by_side(stage: Stage, smaller: GraphOrder, larger: GraphOrder, cores: Sequence[int]) -> list[Visit]:
    """Measure the larger size once on the first core, and the smaller one on the other core as often as time allows.

    Returns the visit to the larger size, and then those to the smaller one.

    Raises:
        ProgramFailed: when a program fails.
    """
    beside: list[Visit] = []
    first = asyncio.create_task(visit(stage, larger, cores[0]))
    try:
        while not first.done():
            beside.append(await visit(stage, smaller, cores[1]))
        return [await first, *(beside[:-1] or beside)]
    finally:
        first.cancel()
        await asyncio.wait({first})


def times(larger: Visit, *smaller: Visit) -> float:
    """Return the larger size's time over the smaller's; by means, since slow spells are part of both."""
    return mean(larger.seconds) / mean(seconds for visit in smaller for seconds in visit.seconds)


async def rising(stage: Stage, trials: Sequence[Trial], size: Size) -> tuple[Grown, ...]:
    """Measure each trial beside the next one, which is ten times as large, `size.graph_pairs` times on either core."""
    cores, found, ratios = two_cores(), {trial: list[Visit]() for trial in trials}, {trials[0]: list[float]()}
    for before, trial in pairwise(trials):
        ratios[trial] = []
        for pair in (cores, cores[::-1]) * size.graph_pairs:
            larger, *smaller = await side_by_side(
                stage, before.order(int(SHORTER * size.graph_visit)), trial.order(size.graph_visit), pair
            )
            ratios[trial].append(times(larger, *smaller))
            found[trial].append(larger)
            found[before] += smaller
    return tuple(grown(trial, visits, ratios[trial]) for trial, visits in found.items())


def grown(trial: Trial, visits: Sequence[Visit], ratios: Sequence[float]) -> Grown:
    """Return the figures of all visits to one size."""
    return Grown(
        trial.name,
        trial.nodes,
        median(seconds for visit in visits for seconds in visit.seconds),
        max(visit.megabytes for visit in visits),
        geometric_mean(ratios) if ratios else 1.0,
        tuple(ratios),
    )


async def measure(stage: Stage, size: Size) -> dict[str, tuple[Grown, ...]]:
    """Measure wider and wider workflows, longer and longer ones, and more and more workflows of ten nodes."""
    width = size.large_graphs[0] // LAYERS
    return {
        "wider": await rising(stage, [wider(nodes) for nodes in size.large_graphs], size),
        "longer": await rising(stage, [longer(nodes, width) for nodes in size.large_graphs], size),
        "more": await rising(stage, [more(workflows) for workflows in size.small_graphs], size),
    }


def verdicts(found: Mapping[str, Sequence[Grown]]) -> tuple[Verdict, ...]:
    """Judge the time of ten times the nodes at each step, and the peak of the memory."""
    steps = [step for series in found.values() for step in pairwise(series)]
    largest = max((step for series in found.values() for step in series), key=lambda step: step.most_megabytes)
    return (
        *(
            Verdict(f"{after.name} / {before.name}, time", after.times, Bound.AT_MOST, MOST_TIMES_FOR_TEN, "x")
            for before, after in steps
        ),
        Verdict(f"dispatcher's memory, {largest.name}", largest.most_megabytes, Bound.BELOW, MOST_MEGABYTES, "MB"),
    )


def figures(found: Mapping[str, Sequence[Grown]]) -> tuple[Figure, ...]:
    """Return speed and memory of each size."""
    return tuple(
        figure
        for series in found.values()
        for step in series
        for figure in (
            Figure(f"{step.name}: nodes per second on one core", step.nodes / step.seconds, "/s"),
            Figure(f"{step.name}: dispatcher's memory at most", step.most_megabytes, "MB"),
        )
    )


def charts(found: Mapping[str, Sequence[Grown]]) -> tuple[Chart, ...]:
    """Return a chart of nodes per second over the size."""
    series = {
        label: [(step.nodes, step.nodes / step.seconds) for step in found[name]] for name, label in SERIES.items()
    }
    first, last = found["wider"][0], found["wider"][-1]
    title = (
        f"From {first.nodes:,} to {last.nodes:,} nodes in one workflow: {first.nodes / first.seconds:,.0f} to "
        f"{last.nodes / last.seconds:,.0f} nodes per second on one core"
    )
    return (Lines(NAME, title, "nodes in all", "nodes per second", series, level_logarithmic=True),)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure growing workflows, and judge the growth of time and memory."""
    found = await measure(stage, size)
    raw = {name: [asdict(step) for step in series] for name, series in found.items()}
    return Findings(NAME, verdicts(found), figures(found), raw, charts(found))
