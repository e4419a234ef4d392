"""The verdicts on documents that are written at once, and the workflow that they are compared with."""

from __future__ import annotations

from agents.demo.docs import FLOW
from benchmarks.parts.parallel_docs import DocsTimes, figures, one_by_one, verdicts
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.graph import graph_of

GOOD = {"processor": DocsTimes((1.0, 1.0, 9.0), (1.5,)), "model": DocsTimes((2.0,), (5.0,))}
BAD = {"processor": DocsTimes((1.0,), (1.4,)), "model": DocsTimes((2.0,), (4.9,))}


def test_each_input_is_judged_by_the_ratio_of_its_medians() -> None:
    assert [one.ok for one in verdicts(GOOD)] == [True, True]
    assert [one.ok for one in verdicts(BAD)] == [False, False]
    assert len(figures(GOOD)) == 4


def test_one_by_one_the_writers_follow_each_other_and_nothing_else_changes() -> None:
    flow = load_workflow(FLOW)
    chained = one_by_one(flow)

    assert len(graph_of(flow).layers) == 3
    assert [list(layer) for layer in graph_of(chained).layers][:3] == [
        ["reference"],
        ["user_guide"],
        ["deployment_guide"],
    ]
    assert [(node.name, node.input) for node in chained.nodes] == [(node.name, node.input) for node in flow.nodes]
