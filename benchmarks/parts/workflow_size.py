"""Larger workflows, and more of them: what ten times the nodes costs, and what the dispatcher holds in memory.

A workflow grows in two ways. A longer one has more layers. A wider one has larger layers: when there is more in them
than may be under way, twice the agents' slots, its nodes go the other way to their claim, through the backlog that RQ
holds. That costs a tenth more, whatever the size. With few slots, 10,000 nodes go that way as 100,000 do.

Two sizes are measured side by side, each on one core with servers, dispatcher, agents and client of its own, the
smaller one over and over until the larger one has ended; then the cores are exchanged. A machine's speed changes by
half within minutes, and the larger size takes minutes: one behind the other they meet different machines.
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
"""What a visit to the smaller size has of the larger one's nodes. Such visits are made until the larger one's has
ended, and the one that goes on longer does not count: nothing was beside it at last."""
SERIES = {"wider": "one workflow of ten layers", "longer": "one of longer and longer", "more": "workflows of ten nodes"}
"""How the plot calls them."""
MOST_TIMES_FOR_TEN = 11.0
MOST_MEGABYTES = 250.0


class TooFewCores(RuntimeError):
    """The sizes cannot be measured side by side."""


@dataclass(frozen=True, slots=True)
class Trial:
    """So many of one graph."""

    name: str
    graph: Graph
    many: int = 1

    @property
    def nodes(self) -> int:
        """In all of them."""
        return self.graph.nodes * self.many

    def order(self, nodes: int) -> GraphOrder:
        """Runs of about so many nodes together."""
        runs = max(1, min(MOST_RUNS, nodes // self.nodes))
        return GraphOrder(DRIVERS[Side.DIRECT], WARM_UP, self.graph, runs, self.many)


@dataclass(frozen=True, slots=True)
class Grown:
    """What was measured of one trial, on one core. Megabytes are the dispatcher's resident memory."""

    name: str
    nodes: int
    seconds: float
    most_megabytes: float
    times: float = 1.0
    """The time of the size before it: the geometric mean of those below, in which a slower core cancels out."""
    each: tuple[float, ...] = ()
    """Of each round on the one core, then on the other."""


def wider(nodes: int) -> Trial:
    """A workflow of ten layers."""
    return Trial(f"{nodes:,} nodes in {LAYERS} layers", layered(LAYERS, nodes // LAYERS))


def longer(nodes: int, width: int) -> Trial:
    """A workflow of layers that have a certain size."""
    return Trial(f"{nodes:,} nodes in layers of {width}", layered(nodes // width, width))


def more(workflows: int) -> Trial:
    """Small workflows."""
    return Trial(f"{workflows:,} workflows of {SMALL.nodes}", SMALL, workflows)


def two_cores() -> tuple[int, int]:
    """That this process may use. Raises: TooFewCores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise TooFewCores("Two sizes are measured side by side, on a core each: run this where there are two cores.")
    return cores[0], cores[1]


async def side_by_side(stage: Stage, smaller: GraphOrder, larger: GraphOrder, cores: Sequence[int]) -> list[Visit]:
    """One visit to the larger size on the first core, then those to the smaller one that the other core made beside it.

    Raises: ProgramFailed.
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
    """How often the smaller size goes into the larger one's time; by means, since slow spells are part of both."""
    return mean(larger.seconds) / mean(seconds for one in smaller for seconds in one.seconds)


async def rising(stage: Stage, trials: Sequence[Trial], size: Size) -> tuple[Grown, ...]:
    """Each beside the one that is ten times as large, so many times on either core."""
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
    """All visits to one size together."""
    return Grown(
        trial.name,
        trial.nodes,
        median(seconds for one in visits for seconds in one.seconds),
        max(one.megabytes for one in visits),
        geometric_mean(ratios) if ratios else 1.0,
        tuple(ratios),
    )


async def measure(stage: Stage, size: Size) -> dict[str, tuple[Grown, ...]]:
    """One wider and wider workflow; one longer and longer; more and more of ten nodes."""
    width = size.large_graphs[0] // LAYERS
    return {
        "wider": await rising(stage, [wider(nodes) for nodes in size.large_graphs], size),
        "longer": await rising(stage, [longer(nodes, width) for nodes in size.large_graphs], size),
        "more": await rising(stage, [more(workflows) for workflows in size.small_graphs], size),
    }


def verdicts(found: Mapping[str, Sequence[Grown]]) -> tuple[Verdict, ...]:
    """Ten times the nodes at each step, and the most memory."""
    steps = [step for series in found.values() for step in pairwise(series)]
    largest = max((one for series in found.values() for one in series), key=lambda one: one.most_megabytes)
    return (
        *(
            Verdict(f"{after.name} / {before.name}, time", after.times, Bound.AT_MOST, MOST_TIMES_FOR_TEN, "x")
            for before, after in steps
        ),
        Verdict(f"dispatcher's memory, {largest.name}", largest.most_megabytes, Bound.BELOW, MOST_MEGABYTES, "MB"),
    )


def figures(found: Mapping[str, Sequence[Grown]]) -> tuple[Figure, ...]:
    """Speed and memory of each."""
    return tuple(
        figure
        for series in found.values()
        for one in series
        for figure in (
            Figure(f"{one.name}: nodes per second on one core", one.nodes / one.seconds, "/s"),
            Figure(f"{one.name}: dispatcher's memory at most", one.most_megabytes, "MB"),
        )
    )


def charts(found: Mapping[str, Sequence[Grown]]) -> tuple[Chart, ...]:
    """Nodes per second over the size."""
    series = {label: [(one.nodes, one.nodes / one.seconds) for one in found[name]] for name, label in SERIES.items()}
    first, last = found["wider"][0], found["wider"][-1]
    title = (
        f"From {first.nodes:,} to {last.nodes:,} nodes in one workflow: {first.nodes / first.seconds:,.0f} to "
        f"{last.nodes / last.seconds:,.0f} nodes per second on one core"
    )
    return (Lines(NAME, title, "nodes in all", "nodes per second", series, level_logarithmic=True),)


async def run(stage: Stage, size: Size) -> Findings:
    """Measures and judges."""
    found = await measure(stage, size)
    raw = {name: [asdict(one) for one in series] for name, series in found.items()}
    return Findings(NAME, verdicts(found), figures(found), raw, charts(found))
