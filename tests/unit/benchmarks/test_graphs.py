from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest

from benchmarks.figures import rounded
from benchmarks.parts import workflow_size, workflow_state, workflows
from benchmarks.parts.graph_sides import DRIVERS, SIDES, WORKERS, workers
from benchmarks.parts.sides import OTHERS, Side
from benchmarks.parts.workflow_size import Grown, Trial
from benchmarks.parts.workflow_state import Found
from benchmarks.programs.coditect_graphs import definition_of
from benchmarks.programs.graphs import TEXT, Graph, GraphOrder, chain, check_sinks, fan, layered
from benchmarks.size import FULL, QUICK
from benchmarks.verdict import Verdict
from coditect.model.workflow.graph import graph_of

GRAPHS = (fan(5), chain(4), layered(3, 10))


def judged(verdicts: tuple[Verdict, ...]) -> list[tuple[float, bool]]:
    return [(rounded(verdict.measured), verdict.ok) for verdict in verdicts]


def edges(graph: Graph) -> dict[int, tuple[int, ...]]:
    return {node.number: node.after for layer in graph.layers() for node in layer}


def test_fan_is_one_then_many_then_one_after_all() -> None:
    assert edges(fan(3)) == {0: (), 1: (0,), 2: (0,), 3: (0,), 4: (1, 2, 3)}


def test_chain_is_one_after_the_other() -> None:
    assert edges(chain(3)) == {0: (), 1: (0,), 2: (1,)}


def test_layers_come_after_three_of_the_layer_before() -> None:
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
    assert set(DRIVERS) == set(SIDES) == {Side.DIRECT, *OTHERS}
    assert len(set(DRIVERS.values())) == len(SIDES)
    assert {len(workers(side)) for side in OTHERS} == {WORKERS}
    assert len({program.argv for program in workers(Side.CELERY)}) == WORKERS, "each has a name of its own"


def seconds(fans: float, hop: float, layers: float) -> dict[str, float]:
    """Of one run of each graph: nodes per second, milliseconds per hop."""
    return {"fan": 1_002 / fans, "chain": hop * 100 / 1_000, "layered": 1_000 / layers}


def found(**sides: dict[str, float]) -> workflows.Seconds:
    named = {"ours": Side.DIRECT, "rq": Side.RQ, "celery": Side.CELERY, "taskiq": Side.TASKIQ}
    return {graph: {named[side]: [one[graph]] for side, one in sides.items()} for graph in ("fan", "chain", "layered")}


def test_workflows_are_judged_beside_each_and_the_chain_beside_the_best() -> None:
    measured = found(
        ours=seconds(5_000, 1.5, 3_999),
        rq=seconds(1_000, 2.4, 800),
        celery=seconds(1_250, 1.7, 900),
        taskiq=seconds(1_999, 1.6, 1_600),
    )

    assert judged(workflows.verdicts(FULL, measured)) == [
        (5.0, True),
        (4.0, True),
        (2.501, True),
        (0.9375, True),
        (4.999, False),
        (4.443, True),
        (2.499, False),
    ]


def test_workflows_want_only_what_was_measured() -> None:
    alone = found(ours=seconds(5_000, 1.5, 4_000))

    assert workflows.verdicts(FULL, alone) == ()
    assert workflows.charts(FULL, alone) == ()
    assert len(workflows.figures(FULL, alone)) == 6


def test_plots_of_workflows_name_the_best_of_the_others() -> None:
    measured = found(ours=seconds(5_000, 1.5, 4_000), rq=seconds(1_000, 3.0, 800), taskiq=seconds(2_000, 1.6, 1_600))

    assert [chart.title for chart in workflows.charts(FULL, measured)] == [
        "Fan of 1,002 nodes: 2.50 x Taskiq, the best of the others",
        "Chain of 100 nodes: 0.94 x Taskiq, the best of the others",
        "Layered of 1,000 nodes: 2.50 x Taskiq, the best of the others",
    ]


def test_ten_times_the_nodes_may_cost_eleven_times_the_time() -> None:
    found = {
        "wider": [
            Grown("a", 1_000, 1.0, 90.0),
            Grown("b", 10_000, 11.0, 120.0, 11.0),
            Grown("c", 100_000, 121.1, 249.0, 11.01),
        ],
        "longer": [Grown("d", 1_000, 1.0, 90.0), Grown("e", 10_000, 10.5, 250.0, 10.5)],
        "more": [Grown("f", 10_000, 1.0, 90.0), Grown("g", 100_000, 12.0, 90.0, 12.0)],
    }

    assert judged(workflow_size.verdicts(found)) == [
        (11.0, True),
        (11.01, False),
        (10.5, True),
        (12.0, False),
        (250.0, False),
    ]
    (chart,) = workflow_size.charts(found)
    assert chart.title == "From 1,000 to 100,000 nodes in one workflow: 1,000 to 826 nodes per second"


@pytest.mark.parametrize("nodes", FULL.large_graphs)
def test_a_workflow_grows_in_width_or_in_length(nodes: int) -> None:
    wide, long = workflow_size.wider(nodes), workflow_size.longer(nodes, 100)

    assert wide.nodes == long.nodes == nodes
    assert (len(wide.graph.widths), wide.graph.widths[0]) == (10, nodes // 10)
    assert (len(long.graph.widths), long.graph.widths[0]) == (nodes // 100, 100)


@pytest.mark.parametrize(("nodes", "runs"), [(1_000, 15), (10_000, 5), (100_000, 1)])
def test_sizes_that_are_compared_take_about_as_long(nodes: int, runs: int) -> None:
    assert workflow_size.wider(nodes).runs == workflow_size.longer(nodes, 100).runs == runs
    assert workflow_size.more(nodes // 10).runs == runs


async def test_the_size_before_is_measured_again_behind_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    speeds = {"1": iter([[1.0, 5.0, 3.0], [4.0, 6.0, 5.0]]), "2": iter([[20.0], [30.0]]), "3": iter([[300.0]])}

    async def one_size(_: object, trial: Trial) -> tuple[list[float], float]:
        order.append(trial.name)
        return next(speeds[trial.name]), float(len(order))

    monkeypatch.setattr(workflow_size, "one_size", one_size)
    trials = [Trial(name, chain(nodes)) for name, nodes in (("1", 1), ("2", 10), ("3", 100))]

    found = await workflow_size.rising(cast(Any, None), trials, rounds=1)

    assert order == ["1", "2", "1", "3", "2"]
    assert found == (
        Grown("1", 1, 4.5, 3.0),
        Grown("2", 10, 25.0, 5.0, 20.0 / 4.0),
        Grown("3", 100, 300.0, 4.0, 300.0 / 25.0),
    )


async def test_each_round_of_a_step_is_compared_with_what_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    speeds = {"1": iter([1.0, 1.0, 3.0, 5.0]), "2": iter([10.0, 20.0, 48.0])}

    async def one_size(_: object, trial: Trial) -> tuple[list[float], float]:
        order.append(trial.name)
        return [next(speeds[trial.name])], 0.0

    monkeypatch.setattr(workflow_size, "one_size", one_size)

    small, large = await workflow_size.rising(cast(Any, None), [Trial("1", chain(1)), Trial("2", chain(10))], rounds=3)

    assert order == ["1", "2", "1", "2", "1", "2", "1"]
    assert (small.seconds, large.seconds) == (2.0, 20.0)
    assert (small.times, large.times) == (1.0, 10.0)


def test_state_restart_and_idleness_have_their_targets() -> None:
    good = Found((1.0,) * 99 + (50.0,), (2.0,) * 99 + (60.0,), (0.5, 0.6, 0.7), (1.0, 2.0, 3.0), 1.9, 60.0)

    assert judged(workflow_state.verdicts(good, 10_000)) == [(1.0, True), (2.0, True), (1.9, True)]
    assert judged(workflow_state.verdicts(replace(good, query_milliseconds=(10.0,), cpu_percent=2.0), 10_000)) == [
        (10.0, False),
        (2.0, True),
        (2.0, False),
    ]
    assert [figure.value for figure in workflow_state.figures(good)] == [1.0, 2.0, 2.0, 0.6, 3.0, 60.0]


@pytest.mark.parametrize(
    "sizes", [FULL.large_graphs, FULL.small_graphs, QUICK.large_graphs, QUICK.small_graphs], ids=str
)
def test_each_size_is_ten_times_the_one_before(sizes: tuple[int, ...]) -> None:
    assert [after / before for before, after in pairwise(sizes)] == [10.0] * (len(sizes) - 1)
