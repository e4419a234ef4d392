from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from typing import Any, cast

import pytest

from benchmarks.parts import workflow_size
from benchmarks.parts.graph_sides import DRIVERS, SIDES, WORKERS, workers
from benchmarks.parts.sides import OTHERS, Side
from benchmarks.parts.visit import Visit
from benchmarks.parts.workflow_size import TooFewCores, Trial
from benchmarks.programs.coditect_graphs import definition_of
from benchmarks.programs.graph_client import run_many
from benchmarks.programs.graphs import AT_ONCE, TEXT, Graph, GraphOrder, chain, check_sinks, fan, layered
from benchmarks.size import FULL, QUICK
from benchmarks.stage import ProgramFailed
from coditect.workflow.graph import graph_of

GRAPHS = (fan(5), chain(4), layered(3, 10))


def edges(graph: Graph) -> dict[int, tuple[int, ...]]:
    return {node.number: node.after for layer in graph.layers() for node in layer}


def test_graphs_have_the_edges_of_a_fan_a_chain_and_layers() -> None:
    assert edges(fan(3)) == {0: (), 1: (0,), 2: (0,), 3: (0,), 4: (1, 2, 3)}

    assert edges(chain(3)) == {0: (), 1: (0,), 2: (1,)}

    assert edges(layered(2, 4)) == {
        **dict.fromkeys(range(4), ()),
        4: (0, 1, 2),
        5: (1, 2, 3),
        6: (2, 3, 0),
        7: (3, 0, 1),
    }


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_ours_is_the_same_graph(graph: Graph) -> None:
    found = graph_of(definition_of(graph))

    numbers = {name: int(name.removeprefix("n")) for name in found.order}
    assert {numbers[name]: tuple(numbers[edge.node] for edge in found.nodes[name].after) for name in numbers} == edges(
        graph
    )


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_only_the_results_of_the_last_layer_in_order_are_right(graph: Graph) -> None:
    right = [{"number": number, "text": TEXT} for number in graph.sinks]

    check_sinks(graph, right)
    for wrong in (right[:-1], [*right, right[0]], [{"number": 0, "text": ""}, *right[1:]]):
        with pytest.raises(ValueError, match=graph.name):
            check_sinks(graph, wrong)


def test_graph_order_is_read_as_it_was_written() -> None:
    order = GraphOrder("module", chain(3), layered(2, 4), 5, many=6)

    assert GraphOrder.read(order.written()) == order


def test_every_side_has_a_driver_of_its_own_and_as_many_workers() -> None:
    assert set(DRIVERS) == set(SIDES) == {Side.CODITECT, *OTHERS, Side.DASK}
    assert len(set(DRIVERS.values())) == len(SIDES)
    assert {len(workers(side)) for side in OTHERS} == {WORKERS}
    assert len({program.argv for program in workers(Side.CELERY)}) == WORKERS, "each has a name of its own"


@pytest.mark.parametrize("nodes", FULL.large_graphs)
def test_a_workflow_grows_in_width_or_in_length(nodes: int) -> None:
    wide, long = workflow_size.wider(nodes), workflow_size.longer(nodes, 100)

    assert wide.nodes == long.nodes == nodes
    assert (len(wide.graph.widths), wide.graph.widths[0]) == (10, nodes // 10)
    assert (len(long.graph.widths), long.graph.widths[0]) == (nodes // 100, 100)


@pytest.mark.parametrize(("nodes", "as_larger", "as_smaller"), [(1_000, 15, 15), (10_000, 5, 2), (100_000, 1, 1)])
def test_a_larger_size_is_run_longer_than_the_smaller_beside_it(nodes: int, as_larger: int, as_smaller: int) -> None:
    for trial in (workflow_size.wider(nodes), workflow_size.longer(nodes, 100), workflow_size.more(nodes // 10)):
        assert trial.order(FULL.graph_visit).runs == as_larger
        assert trial.order(int(workflow_size.SHORTER * FULL.graph_visit)).runs == as_smaller


class Cores:
    """Two of them, on which a run of so many nodes takes as many seconds, or twice as many on the second."""

    def __init__(self) -> None:
        self.visits: list[tuple[str, int]] = []
        self._ended = asyncio.Event()

    async def visit(self, _: object, order: GraphOrder, core: int) -> Visit:
        self.visits.append((order.graph.name, core))
        if order.graph.name == "large":
            await self._ended.wait()
            self._ended.clear()
        elif self.visits.count(("small", core)) % 3 == 0:
            self._ended.set()
            await asyncio.sleep(0)
        return Visit((order.graph.nodes * (1.0 + core),), float(len(self.visits)))


async def test_two_sizes_run_side_by_side_and_then_with_the_cores_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores()
    monkeypatch.setattr(workflow_size, "visit", cores.visit)
    monkeypatch.setattr(workflow_size, "two_cores", lambda: (0, 1))
    trials = [Trial(name, Graph(name, (nodes,))) for name, nodes in (("small", 10), ("large", 90))]

    small, large = await workflow_size.rising(cast(Any, None), trials, QUICK)

    assert sorted(cores.visits[:4]) == [("large", 0), ("small", 1), ("small", 1), ("small", 1)]
    assert sorted(cores.visits[4:]) == [("large", 1), ("small", 0), ("small", 0), ("small", 0)]
    assert (small.seconds, small.times, small.each) == (15.0, 1.0, ())
    assert (large.seconds, large.each) == (135.0, (4.5, 18.0))
    assert large.times == pytest.approx(9.0), "that one core is half as fast cancels out"


async def test_what_the_smaller_size_did_when_nothing_was_beside_it_any_more_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = asyncio.Event()
    speeds = iter([10.0, 12.0, 1.0])

    async def visit(_: object, order: GraphOrder, core: int) -> Visit:
        if core == 0:
            await ended.wait()
            return Visit((110.0,), 0.0)
        seconds = next(speeds)
        if seconds == 1.0:
            ended.set()
            await asyncio.sleep(0)
        return Visit((seconds,), 0.0)

    monkeypatch.setattr(workflow_size, "visit", visit)
    order = Trial("", chain(1)).order(1)

    larger, *smaller = await workflow_size.side_by_side(cast(Any, None), order, order, (0, 1))

    assert [one.seconds for one in smaller] == [(10.0,), (12.0,)]
    assert workflow_size.times(larger, *smaller) == 10.0


async def test_a_visit_that_fails_stops_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []

    async def visit(_: object, order: GraphOrder, core: int) -> Visit:
        if core == 1:
            await asyncio.sleep(0)
            raise ProgramFailed("visit: exit code 1")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(core)
        raise AssertionError

    monkeypatch.setattr(workflow_size, "visit", visit)
    order = Trial("", chain(1)).order(1)

    with pytest.raises(ProgramFailed):
        await workflow_size.side_by_side(cast(Any, None), order, order, (0, 1))
    assert stopped == [0]


def test_one_core_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})

    with pytest.raises(TooFewCores, match="two cores"):
        workflow_size.two_cores()


@pytest.mark.parametrize("many", [1, 64, 200])
async def test_a_client_runs_all_of_them_and_so_many_at_once(many: int) -> None:
    class Runner:
        running = most = ran = 0

        async def run(self, graph: Graph) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            self.running -= 1
            self.ran += 1

    runner = Runner()
    await run_many(runner, chain(1), many)

    assert (runner.ran, runner.most) == (many, min(many, AT_ONCE))


@pytest.mark.parametrize(
    "sizes", [FULL.large_graphs, FULL.small_graphs, QUICK.large_graphs, QUICK.small_graphs], ids=str
)
def test_each_size_is_ten_times_the_one_before(sizes: tuple[int, ...]) -> None:
    assert [after / before for before, after in pairwise(sizes)] == [10.0] * (len(sizes) - 1)
