"""Larger workflows, and more of them: what ten times the nodes costs, and what the dispatcher holds in memory.

A workflow grows in two ways. A longer one has more layers. A wider one has larger layers: when there is more in them
than may be under way, twice the agents' slots, its nodes go the other way to their claim, through the backlog that RQ
holds. That costs a tenth more, whatever the size. With few slots, 10,000 nodes go that way as 100,000 do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import mean, median

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
SLOTS = 100
"""Of each of the two agents: layers of 1,000 do not fit into what may be under way then."""
SMALL = chain(10)
WARM_UP = layered(3, 20)
MOST_RUNS = 15
VISIT_NODES = 50_000
"""Of a size, one run behind the other: up to half a minute. The machine's slow spells last seconds, and a larger size
has its share of them; the size that it is compared with must have, too."""
ROUNDS = 6
"""Of each step: the larger size takes one or two minutes, in which a machine's speed may change by half."""
SERIES = {"wider": "one workflow of ten layers", "longer": "one of longer and longer", "more": "workflows of ten nodes"}
"""How the plot calls them."""
LOOK_SECONDS = 0.1
LONGEST_SECONDS = 900.0
MOST_TIMES_FOR_TEN = 11.0
MOST_MEGABYTES = 250.0


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

    @property
    def runs(self) -> int:
        """How often it is run when it is visited."""
        return max(1, min(MOST_RUNS, VISIT_NODES // self.nodes))


@dataclass(frozen=True, slots=True)
class Grown:
    """What was measured of one trial. Megabytes are the dispatcher's resident memory."""

    name: str
    nodes: int
    seconds: float
    most_megabytes: float
    times: float = 1.0
    """The time of the size before it: the median of the rounds, each of which has that size on both sides."""


def wider(nodes: int) -> Trial:
    """A workflow of ten layers."""
    return Trial(f"{nodes:,} nodes in {LAYERS} layers", layered(LAYERS, nodes // LAYERS))


def longer(nodes: int, width: int) -> Trial:
    """A workflow of layers that have a certain size."""
    return Trial(f"{nodes:,} nodes in layers of {width}", layered(nodes // width, width))


def more(workflows: int) -> Trial:
    """Small workflows."""
    return Trial(f"{workflows:,} workflows of {SMALL.nodes}", SMALL, workflows)


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


async def one_size(stage: Stage, trial: Trial) -> tuple[list[float], float]:
    """Seconds of each run, and megabytes; on a fresh dispatcher with an empty ledger and Redis, and two agents."""
    order = GraphOrder(DRIVERS[Side.DIRECT], WARM_UP, trial.graph, trial.runs, trial.many)
    await stage.empty_redis()
    async with fleet(stage, slots=SLOTS) as plane, peak_megabytes(plane.pid) as most:
        told = await ordered(stage, order, seconds=LONGEST_SECONDS)
    return told["seconds"], most[0]


async def rising(stage: Stage, trials: Sequence[Trial], *, rounds: int = ROUNDS) -> tuple[Grown, ...]:
    """One after the other, each once more behind the next: a machine is faster in one minute than in another.

    Each step is gone up and down so many times.
    """
    found: dict[Trial, list[tuple[list[float], float]]] = {trial: [] for trial in trials}

    async def visit(trial: Trial) -> float:
        found[trial].append(await one_size(stage, trial))
        return mean(found[trial][-1][0])  # a median would leave out the slow spells, which no larger size can

    ahead, times = await visit(trials[0]), [1.0]
    for before, trial in pairwise(trials):
        ratios = []
        for _ in range(rounds):
            seconds, behind = await visit(trial), await visit(before)
            ratios.append(seconds / mean((ahead, behind)))
            ahead = behind
        times.append(median(ratios))
        ahead = seconds
    return tuple(
        Grown(
            one.name,
            one.nodes,
            median([seconds for runs, _ in sizes for seconds in runs]),
            max(most for _, most in sizes),
            ratio,
        )
        for (one, sizes), ratio in zip(found.items(), times, strict=True)
    )


async def measure(stage: Stage, size: Size) -> dict[str, tuple[Grown, ...]]:
    """One wider and wider workflow; one longer and longer; more and more of ten nodes."""
    width = size.large_graphs[0] // LAYERS
    return {
        "wider": await rising(stage, [wider(nodes) for nodes in size.large_graphs]),
        "longer": await rising(stage, [longer(nodes, width) for nodes in size.large_graphs]),
        "more": await rising(stage, [more(workflows) for workflows in size.small_graphs]),
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
            Figure(f"{one.name}: nodes per second", one.nodes / one.seconds, "/s"),
            Figure(f"{one.name}: dispatcher's memory at most", one.most_megabytes, "MB"),
        )
    )


def charts(found: Mapping[str, Sequence[Grown]]) -> tuple[Chart, ...]:
    """Nodes per second over the size."""
    series = {label: [(one.nodes, one.nodes / one.seconds) for one in found[name]] for name, label in SERIES.items()}
    first, last = found["wider"][0], found["wider"][-1]
    title = (
        f"From {first.nodes:,} to {last.nodes:,} nodes in one workflow: {first.nodes / first.seconds:,.0f} to "
        f"{last.nodes / last.seconds:,.0f} nodes per second"
    )
    return (Lines(NAME, title, "nodes in all", "nodes per second", series, level_logarithmic=True),)


async def run(stage: Stage, size: Size) -> Findings:
    """Measures and judges."""
    found = await measure(stage, size)
    raw = {name: [asdict(one) for one in series] for name, series in found.items()}
    return Findings(NAME, verdicts(found), figures(found), raw, charts(found))
