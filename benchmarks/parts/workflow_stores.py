"""Workflows on FoundationDB beside SQLite: the same graphs and agents, with the ledger on one or the other."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

from benchmarks.figures import median
from benchmarks.parts.graph_sides import DRIVERS, WORKERS, fleet, ordered
from benchmarks.parts.sides import Side
from benchmarks.parts.workflows import MORE_ROUNDS, WARM_UPS, graphs, ms_per_hop, nodes_per_second
from benchmarks.programs.graphs import GraphOrder
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect.local.foundationdb import PrivateFoundationDB, private_foundationdb

NAME = "workflow-stores"
LEAST_SHARE = 0.5
"""The target: nodes per second on FoundationDB, as a share of those on SQLite."""


class Store(StrEnum):
    """The store of the dispatcher's ledger."""

    SQLITE = "SQLite"
    FOUNDATIONDB = "FoundationDB"


@dataclass(slots=True)
class Found:
    """The measurements of a run."""

    seconds: dict[str, dict[Store, list[list[float]]]] = field(default_factory=dict)
    """The seconds of each run, by graph, store and round."""
    transactions: dict[str, list[Mapping[str, int]]] = field(default_factory=dict)
    """FoundationDB's own counts of transactions in each round, by graph."""


async def measure(stage: Stage, size: Size) -> Found:
    """Measure alternating rounds of both stores, one graph after the other, each round on a new store.

    Raises:
        MissingServer: FoundationDB's programs are not installed.
    """
    found = Found()
    for graph in graphs(size):
        runs = size.graph_runs * max(1, size.graph_width // graph.nodes)  # each graph is measured for about as long
        order = GraphOrder(DRIVERS[Side.DIRECT], WARM_UPS[graph.name], graph, runs)
        seconds = found.seconds.setdefault(graph.name, {})
        for _ in range(size.graph_rounds * MORE_ROUNDS.get(graph.name, 1)):
            for store in Store:
                async with opened(stage, store) as cluster:
                    place = f"fdb:{cluster.cluster_file}" if cluster else None
                    async with fleet(stage, store=place):
                        told = await ordered(stage, order)
                    seconds.setdefault(store, []).append(told["seconds"])
                    if cluster is not None:
                        found.transactions.setdefault(graph.name, []).append(await cluster.transactions())
    return found


@asynccontextmanager
async def opened(stage: Stage, store: Store) -> AsyncIterator[PrivateFoundationDB | None]:
    """Yield a new FoundationDB of one process; None for SQLite, whose file is the dispatcher's own."""
    if store is Store.SQLITE:
        yield None
        return
    async with private_foundationdb(stage.fresh_folder("foundationdb"), environ=os.environ) as cluster:
        yield cluster


def verdicts(size: Size, found: Found) -> tuple[Verdict, ...]:
    """Compare nodes per second on FoundationDB with those on SQLite, by the median round."""
    judged = []
    for graph in graphs(size):
        speeds = {
            store: [nodes_per_second(graph, seconds) for seconds in rounds]
            for store, rounds in found.seconds[graph.name].items()
        }
        # Each round with its neighbor: a machine can be half as fast again within minutes.
        shares = [one / other for one, other in zip(speeds[Store.FOUNDATIONDB], speeds[Store.SQLITE], strict=True)]
        name = f"{graph.name}, nodes/s: on FoundationDB / on SQLite"
        judged.append(Verdict(name, median(shares), Bound.AT_LEAST, LEAST_SHARE, "x"))
    return tuple(judged)


def figures(size: Size, found: Found) -> tuple[Figure, ...]:
    """Return the speed on both stores, and FoundationDB's transactions and conflicts in a round, by the median."""
    shown = []
    for graph in graphs(size):
        for store, rounds in found.seconds[graph.name].items():
            seconds = list(chain.from_iterable(rounds))
            what = f"{graph.name} of {graph.nodes:,} on {store.value}"
            shown.append(Figure(f"{what}: nodes per second", nodes_per_second(graph, seconds), "/s"))
            shown.append(Figure(f"{what}: per layer", ms_per_hop(graph, seconds), "ms"))
        for count in ("committed", "conflicted"):
            numbers = _counts(found.transactions[graph.name], count)
            shown.append(Figure(f"{graph.name} on FoundationDB: transactions {count} in a round", median(numbers)))
    return tuple(shown)


def _counts(rounds: Sequence[Mapping[str, int]], name: str) -> list[float]:
    return [float(one[name]) for one in rounds]


async def run(stage: Stage, size: Size) -> Findings:
    """Measure graphs on both stores, and judge FoundationDB's share of SQLite's speed."""
    found = await measure(stage, size)
    raw = {
        graph: {
            "seconds": {store.value: seconds for store, seconds in stores.items()},
            "transactions": [dict(one) for one in found.transactions[graph]],
        }
        for graph, stores in found.seconds.items()
    }
    note = (
        f"{WORKERS} agent processes and one dispatcher; SQLite with synchronous=FULL, FoundationDB of one process, "
        "`single ssd`, on the same disk; every round on a new store"
    )
    return Findings(NAME, verdicts(size, found), figures(size, found), raw, notes=(note,))
