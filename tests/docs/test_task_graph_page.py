"""The task graph's page says what the code does, and stock RQ counts what its table says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import Redis

from coditect.workflow.states import TaskState
from dispatcher.scheduling.reconciler import ROUND_SECONDS
from dispatcher.taskgraph import redis
from dispatcher.taskgraph.port import BATCH, MOST_RESULT_BYTES, JobState, job_state
from dispatcher.taskgraph.projector import MOST_WITH_OUTCOMES
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.docs.pages import section, table_rows
from tests.integration.graph.stock import Stock
from tests.integration.registry.private_redis import run_private_redis
from tests.servers import ROOT

PAGE = ROOT / "docs" / "task-graph.md"
ROWS = [[cell.strip("`") for cell in row] for row in table_rows(section(PAGE, "Where a node is"))]
COUNTED = {"queued": "the queue's number", "started": "executing", "finished": "finished", "failed": "failed"}
"""By `rq info`, and by which word of its output."""


def test_the_table_has_every_state_of_a_node_once() -> None:
    assert [row[0] for row in ROWS] == [state.value for state in TaskState]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_of_the_table_is_what_the_code_does(row: list[str]) -> None:
    state = job_state(TaskState(row[0]))
    key = {JobState.QUEUED: "rq:queue:<queue>", JobState.STARTED: "rq:wip:<queue>"}

    assert row[1] == state.value
    assert row[2] == key.get(state, f"rq:{state.value}:<queue>")
    assert row[3] == (f"rq info`: {COUNTED[state.value]}" if state.value in COUNTED else f"rq-dashboard: {state.value}")


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[tuple[Scene, Stock]]:
    with run_private_redis(tmp_path) as server, Redis.from_url(server.url) as client:
        async with RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=10) as graph:
            scene = Scene(graph)
            yield scene, Stock(client, scene)


@pytest.mark.servers
async def test_stock_rq_counts_what_the_ledger_counts(scene: tuple[Scene, Stock]) -> None:
    """As many nodes of each state as no sum of others has: 1, 2, 4..."""
    ours, stock = scene
    ledger = {state: 2**number for number, state in enumerate(TaskState)}
    for state, number in ledger.items():
        await ours.create(*[ours.job(f"{state.value}_{at}", state=JobState.QUEUED) for at in range(number)])
        await ours.tell(job_state(state), *[f"{state.value}_{at}" for at in range(number)])

    expected: Counter[str] = Counter()
    for row in ROWS:
        expected[row[1]] += ledger[TaskState(row[0])]
    assert await ours.counts() == stock.counts() == expected
    assert stock.info()[stock.name] == {
        "queued": expected["queued"],
        "executing": expected["started"],
        "finished": expected["finished"],
        "failed": expected["failed"],
    }


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        (r"every ([\d,]+) s the live workflows", ROUND_SECONDS),
        (r"every ([\d,]+) s such workflows are looked for", ROUND_SECONDS),
        (r"in batches of up to ([\d,]+) by Lua", BATCH),
        (r"fan-out of more than ([\d,]+) is released", redis.MOST_DEPENDENTS),
        (r"at most ([\d,]+) bytes of JSON", MOST_RESULT_BYTES),
        (r"more than ([\d,]+) changes wait\sfor Redis", MOST_WITH_OUTCOMES),
    ],
)
def test_a_number_in_the_text_is_that_of_the_code(sentence: str, number: float) -> None:
    found = re.search(sentence, PAGE.read_text(encoding="utf-8"))

    assert found
    assert int(found[1].replace(",", "")) == number
