from __future__ import annotations

import pytest

from benchmarks.graph import GRAPHS, STEPS, measure, show
from tests.integration.registry.private_redis import PrivateRedis

pytestmark = pytest.mark.servers


async def test_benchmark_measures_each_step_of_each_graph_on_both_sides(
    server: PrivateRedis, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = await measure(server.url, nodes=30, rounds=1, stock=True)

    assert [(one.graph, one.step) for one in figures] == [(graph, step) for graph in GRAPHS for step in STEPS]
    assert all(one.ours_us > 0 and one.stock_us for one in figures)
    show(figures)
    assert len(capsys.readouterr().out.splitlines()) == len(figures) + 1
