"""Larger workflows, and more of them: what ten times the nodes costs, and what the dispatcher holds in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median

import psutil

from benchmarks.charts import Chart, Lines
from benchmarks.parts.graph_sides import DRIVERS, fleet, ordered
from benchmarks.parts.sides import Side
from benchmarks.programs.graphs import Graph, GraphOrder, chain, layered
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict

NAME = "workflow-size"
LAYERS = 10
SMALL = chain(10)
WARM_UP = layered(3, 20)
RUNS = 3
SOON_RUN = 10_000
"""Nodes that take a few seconds: a machine is a tenth faster or slower in some of them."""
LOOK_SECONDS = 0.1
LONGEST_SECONDS = 900.0
MOST_TIMES_FOR_TEN = 11.0
MOST_MEGABYTES = 250.0


@dataclass(frozen=True, slots=True)
class Grown:
    """One run: so many nodes in all, in so many workflows. Megabytes are the dispatcher's resident memory."""

    nodes: int
    workflows: int
    seconds: float
    most_megabytes: float


@asynccontextmanager
async def peak_megabytes(pid: int) -> AsyncIterator[list[float]]:
    """The most that was seen of the process's resident memory inside the block; one element."""
    process, most = psutil.Process(pid), [0.0]

    async def look() -> None:
        while True:
            most[0] = max(most[0], process.memory_info().rss / 1e6)
            await asyncio.sleep(LOOK_SECONDS)

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        yield most
        looking.cancel()


async def one_size(stage: Stage, graph: Graph, many: int) -> Grown:
    """On a fresh dispatcher with an empty ledger, and two agents; the median of a few runs where one takes seconds."""
    runs = RUNS if graph.nodes * many <= SOON_RUN else 1
    order = GraphOrder(DRIVERS[Side.DIRECT], WARM_UP, graph, runs, many)
    async with fleet(stage) as plane, peak_megabytes(plane.pid) as most:
        told = await ordered(stage, order, seconds=LONGEST_SECONDS)
    return Grown(graph.nodes * many, many, median(told["seconds"]), most[0])


async def measure(stage: Stage, size: Size) -> tuple[tuple[Grown, ...], tuple[Grown, ...]]:
    """One larger and larger workflow; more and more of ten nodes."""
    large = [await one_size(stage, layered(LAYERS, nodes // LAYERS), 1) for nodes in size.large_graphs]
    small = [await one_size(stage, SMALL, many) for many in size.small_graphs]
    return tuple(large), tuple(small)


def verdicts(large: Sequence[Grown], small: Sequence[Grown]) -> tuple[Verdict, ...]:
    """Ten times the nodes at each step, and the memory of the largest."""
    steps = [(before, after) for grown in (large, small) for before, after in pairwise(grown)]
    return (
        *(
            Verdict(f"{_named(after)} / {_named(before)}, time", after.seconds / before.seconds, Bound.AT_MOST,
                    MOST_TIMES_FOR_TEN, "x")
            for before, after in steps
        ),
        Verdict(
            f"dispatcher's memory, {_named(large[-1])}", large[-1].most_megabytes, Bound.BELOW, MOST_MEGABYTES, "MB"
        ),
    )  # fmt: skip


def figures(grown: Sequence[Grown]) -> tuple[Figure, ...]:
    """Speed and memory of each."""
    return tuple(
        figure
        for one in grown
        for figure in (
            Figure(f"{_named(one)}: nodes per second", one.nodes / one.seconds, "/s"),
            Figure(f"{_named(one)}: dispatcher's memory at most", one.most_megabytes, "MB"),
        )
    )


def charts(large: Sequence[Grown], small: Sequence[Grown]) -> tuple[Chart, ...]:
    """Nodes per second over the size."""
    series = {
        "one workflow": [(one.nodes, one.nodes / one.seconds) for one in large],
        "workflows of ten nodes": [(one.nodes, one.nodes / one.seconds) for one in small],
    }
    first, last = large[0], large[-1]
    title = (
        f"From {first.nodes:,} to {last.nodes:,} nodes in one workflow: {first.nodes / first.seconds:,.0f} to "
        f"{last.nodes / last.seconds:,.0f} nodes per second"
    )
    return (Lines(NAME, title, "nodes in all", "nodes per second", series, level_logarithmic=True),)


def _named(one: Grown) -> str:
    return f"{one.nodes:,} nodes" if one.workflows == 1 else f"{one.workflows:,} workflows of {SMALL.nodes}"


async def run(stage: Stage, size: Size) -> Findings:
    """Measures and judges."""
    large, small = await measure(stage, size)
    raw = {"large": [asdict(one) for one in large], "small": [asdict(one) for one in small]}
    return Findings(NAME, verdicts(large, small), figures([*large, *small]), raw, charts(large, small))
