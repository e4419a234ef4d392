"""Workflows on FoundationDB beside SQLite: the same graphs and agents, with the ledger on one or the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.figures import median, percentile
from benchmarks.parts.graph_sides import DRIVERS, WORKERS, fleet, ordered
from benchmarks.parts.sides import Side, rotated
from benchmarks.parts.workflows import WARM_UPS, graphs, ms_per_hop, nodes_per_second
from benchmarks.programs.graphs import Graph, GraphOrder
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect.local.private import PrivateFoundationDB, private_foundationdb

NAME = "workflow-stores"
MORE_ROUNDS = 2
"""The factor of the number of rounds, as the stores are close to the target."""
MORE_RUNS = {"fan": 3, "chain": 5, "layered": 3}
"""The factor of the number of runs in a round, by graph, so that each is measured for about as long."""
UNDISTURBED = 25
"""The percentile of its runs' times by which a store is judged.

What else the machine's processors do can make them half as fast for seconds. That lengthens some runs of either store,
and shortens none. The median run's figures stand beside.
"""
LEAST_SHARE = 0.8
"""The target: nodes per second on FoundationDB, as a share of those on SQLite."""


class Store(StrEnum):
    """The store of the dispatcher's ledger."""

    SQLITE = "SQLite"
    FOUNDATIONDB = "FoundationDB"


@dataclass(slots=True)
class Found:
    """The measurements of a run."""

    seconds: dict[str, dict[Store, list[float]]] = field(default_factory=dict)
    """The seconds of each run, by graph and store."""
    transactions: list[Mapping[str, int]] = field(default_factory=list)
    """FoundationDB's own counts of transactions, by round."""


async def measure(stage: Stage, size: Size) -> Found:
    """Measure rounds on both stores in turns; in each, a new store, dispatcher and agents run every graph.

    Raises:
        MissingServer: FoundationDB's programs are not installed.
    """
    found = Found()
    for number in range(size.graph_rounds * MORE_ROUNDS):
        for store in rotated(tuple(Store), number):
            await asyncio.to_thread(os.sync)  # what the last store has left to write would slow this one
            async with opened(stage, store) as cluster:
                place = f"fdb:{cluster.cluster_file}" if cluster else None
                async with fleet(stage, store=place):
                    for graph in rotated(graphs(size), number // len(Store)):
                        report = await ordered(stage, _order(size, graph))
                        found.seconds.setdefault(graph.name, {}).setdefault(store, []).extend(report["seconds"])
                if cluster is not None:
                    found.transactions.append(await cluster.transactions())
    return found


def _order(size: Size, graph: Graph) -> GraphOrder:
    return GraphOrder(DRIVERS[Side.CODITECT], WARM_UPS[graph.name], graph, size.graph_runs * MORE_RUNS[graph.name])


@asynccontextmanager
async def opened(stage: Stage, store: Store) -> AsyncIterator[PrivateFoundationDB | None]:
    """Yield a new FoundationDB of one process; None for SQLite, whose file is the dispatcher's own."""
    if store is Store.SQLITE:
        yield None
        return
    async with private_foundationdb(stage.fresh_folder("foundationdb"), environ=os.environ) as cluster:
        yield cluster


def verdicts(size: Size, found: Found) -> tuple[Verdict, ...]:
    """Compare nodes per second on FoundationDB with those on SQLite, by the runs that the machine disturbed least."""
    judged = []
    for graph in graphs(size):
        seconds = {store: percentile(runs, UNDISTURBED) for store, runs in found.seconds[graph.name].items()}
        share = seconds[Store.SQLITE] / seconds[Store.FOUNDATIONDB]
        name = f"{graph.name}, nodes/s: on FoundationDB / on SQLite"
        judged.append(Verdict(name, share, Bound.AT_LEAST, LEAST_SHARE, "x"))
    return tuple(judged)


def figures(size: Size, found: Found) -> tuple[Figure, ...]:
    """Return the speed on both stores in the median run, and FoundationDB's transactions and conflicts in a round."""
    shown = []
    for graph in graphs(size):
        for store, seconds in found.seconds[graph.name].items():
            label = f"{graph.name} of {graph.nodes:,} on {store.value}"
            shown.append(Figure(f"{label}: nodes per second", nodes_per_second(graph, seconds), "/s"))
            shown.append(Figure(f"{label}: per layer", ms_per_hop(graph, seconds), "ms"))
    for count in ("committed", "conflicted"):
        numbers = [float(counts[count]) for counts in found.transactions]
        shown.append(Figure(f"FoundationDB: transactions {count} in a round of all graphs", median(numbers)))
    return tuple(shown)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure graphs on both stores, and judge FoundationDB's share of SQLite's speed."""
    found = await measure(stage, size)
    raw = {"seconds": found.seconds, "transactions": [dict(counts) for counts in found.transactions]}
    note = (
        f"{WORKERS} agent processes and one dispatcher; SQLite with synchronous=FULL, FoundationDB of one process, "
        "`single ssd`, on the same disk; in every round a new store and new processes, which all graphs share; judged "
        f"by percentile {UNDISTURBED} of a store's times; the figures are the median run's"
    )
    return Findings(NAME, verdicts(size, found), figures(size, found), raw, notes=(note,))
