"""The cost of workflows: the dispatcher's processor time for a node, and the time until a workflow is accepted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import psutil

from benchmarks.figures import median
from benchmarks.parts.graph_sides import DRIVERS, fleet, ordered
from benchmarks.parts.sides import Side
from benchmarks.programs.coditect_graphs import definition_of
from benchmarks.programs.graphs import GraphOrder, layered
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client

NAME = "workflow-cost"
LAYERS = 10
WARM_UP = layered(3, 20)
MOST_RUNS = 10
LONGEST_SECONDS = 900.0
SETTLE_SECONDS = 1.0
"""How long a dispatcher goes on after the last result: RQ is told within a second."""
MOST_MS = (0.25, 0.25, 0.3)
"""The target of the dispatcher's processor time for a node, in milliseconds, by size."""
MOST_SUBMIT_SECONDS = (0.06, 0.5)
"""The target of the time from the submit of a workflow until it is accepted, by size."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The measured costs, by the number of a workflow's nodes."""

    node_milliseconds: Mapping[int, float]
    """The dispatcher's processor time for a node."""
    submit_seconds: Mapping[int, Sequence[float]]
    """The time of each submit, from the definition to the acceptance."""


async def node_milliseconds(stage: Stage, nodes: int) -> float:
    """Run workflows of ten layers on a fresh dispatcher, and return its milliseconds of processor time for a node."""
    graph = layered(LAYERS, nodes // LAYERS)
    runs = max(1, min(MOST_RUNS, 20_000 // nodes))
    async with fleet(stage) as plane:
        process = psutil.Process(plane.pid)
        await ordered(stage, GraphOrder(DRIVERS[Side.CODITECT], WARM_UP, WARM_UP, 1))
        before = process.cpu_times()
        await ordered(stage, GraphOrder(DRIVERS[Side.CODITECT], WARM_UP, graph, runs), seconds=LONGEST_SECONDS)
        await asyncio.sleep(SETTLE_SECONDS)
        after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return 1000 * used / (graph.nodes * runs + WARM_UP.nodes)


async def submit_seconds(stage: Stage, nodes: int, repeats: int) -> list[float]:
    """Submit workflows of ten layers one after the other; return the seconds until each was accepted."""
    taken = []
    async with fleet(stage), Client.connecting(stage.settings) as client:
        for definition in repeat(definition_of(layered(LAYERS, nodes // LAYERS)), repeats + 1):
            began = time.perf_counter()
            run = await client.start(definition)
            taken.append(time.perf_counter() - began)
            await run.result(timeout=LONGEST_SECONDS)
    return taken[1:]


async def measure(stage: Stage, size: Size) -> Costs:
    """Measure one size after the other."""
    nodes = {count: await node_milliseconds(stage, count) for count in size.cost_graphs}
    submits = {count: await submit_seconds(stage, count, size.repeats // 2) for count in size.submitted_graphs}
    return Costs(nodes, submits)


def verdicts(found: Costs) -> tuple[Verdict, ...]:
    """Judge the costs by their targets."""
    return (
        *(
            Verdict(f"dispatcher's processor time a node, {nodes:,} nodes", cost, Bound.AT_MOST, most, "ms")
            for (nodes, cost), most in zip(found.node_milliseconds.items(), MOST_MS, strict=False)
        ),
        *(
            Verdict(f"submit of {nodes:,} nodes until accepted", median(taken), Bound.AT_MOST, most, "s")
            for (nodes, taken), most in zip(found.submit_seconds.items(), MOST_SUBMIT_SECONDS, strict=False)
        ),
    )


def figures(found: Costs) -> tuple[Figure, ...]:
    """Return the slowest submit of each size."""
    return tuple(
        Figure(f"submit of {nodes:,} nodes, slowest", max(taken), "s") for nodes, taken in found.submit_seconds.items()
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure the costs of workflows, and judge them."""
    found = await measure(stage, size)
    raw = {"node_milliseconds": dict(found.node_milliseconds), "submit_seconds": dict(found.submit_seconds)}
    return Findings(NAME, verdicts(found), figures(found), raw)
