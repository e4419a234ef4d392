"""Nodes that were given up are known without a look at every workflow."""

from __future__ import annotations

from typing import Any

from coditect import From, Retry, Workflow
from coditect.model.result import Outcome, Status
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads
from coditect.workflow.rows import DeadRow
from coditect.workflow.states import TaskState
from dispatcher.ledger.keyspace import DEAD
from dispatcher.ledger.nodes.attempts import DIED
from dispatcher.ledger.workflows import queries, remove
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed


def died() -> Outcome:
    return Outcome(Status.FAILED, dumps(DIED.as_json()), None, None, AGENT, failure=DIED)


async def start(ledger: Ledger, workflow: str) -> None:
    flow = Workflow("some")
    for name in ("dies", "fails", "works"):
        flow.task("work", name=name, retry=Retry(max_attempts=1))
    await ledger.start(flow.definition(), workflow=workflow)
    outcomes = {"dies": died(), "fails": failed(), "works": completed(1)}
    await ledger.play(lambda one: outcomes[one.node_key.node])


async def page(ledger: Ledger, **asked: Any) -> tuple[list[tuple[str, str]], Any]:
    answer = loads(dumps(await ledger.database.read(lambda tr: queries.dead(tr, asked))))
    rows = [DeadRow.read(row) for row in answer["dead"]]
    assert all((row.node.state, row.node.reason) == (TaskState.DEAD, DIED.reason) for row in rows)
    return [(row.workflow, row.node.name) for row in rows], answer["next"]


async def test_dead_nodes_of_all_workflows_are_told_in_pages(ledger: Ledger) -> None:
    for workflow in "abc":
        await start(ledger, workflow)

    first, following = await page(ledger, limit=2)
    last, end = await page(ledger, limit=2, after=following)

    assert first == [("a", "dies"), ("b", "dies")]
    assert (last, end) == ([("c", "dies")], None)


async def test_dead_node_that_runs_again_is_none_until_it_dies_again(ledger: Ledger) -> None:
    await start(ledger, "w")

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "dies"})
    meanwhile = await page(ledger)
    await ledger.play(lambda _: died())
    again = await page(ledger)
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(lambda _: completed(1))

    assert meanwhile == ([], None)
    assert again == ([("w", "dies")], None)
    assert await page(ledger) == ([], None)


async def test_dead_element_that_runs_again_with_its_map_is_none_any_more(ledger: Ledger) -> None:
    flow = Workflow("map")
    flow.map("work", "input", From("item"), limit=5, name="each")
    await ledger.start(flow.definition(), [1, 2])
    await ledger.play(lambda one: died() if one.node_key.node == "each[1]" else completed(1))
    before = await page(ledger)

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "each"})
    await ledger.play(lambda _: completed(1))

    assert before == ([("w", "each[1]")], None)
    assert await page(ledger) == ([], None)


async def test_dead_node_goes_with_its_workflow(ledger: Ledger) -> None:
    await start(ledger, "w")
    before_ms = ledger.now_ms + 1

    assert await ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=before_ms))
    assert await page(ledger) == ([], None), "nobody sees it any more"
    while await ledger.database.run(lambda tr: remove.take_apart(tr, "w", before_ms=before_ms)):
        pass

    assert await ledger.database.read(lambda tr: tr.get_range(*DEAD.range())) == []
