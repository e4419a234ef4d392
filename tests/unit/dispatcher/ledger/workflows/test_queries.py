"""What the ledger answers is enough to draw the graph of a run as that of its file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from coditect import From, Workflow
from coditect.errors import NotFound
from coditect.wire.json import dumps, loads
from coditect.workflow.definition import Call, Definition, Each, Node, SubWorkflow
from coditect.workflow.documents.reader import definition_of
from coditect.workflow.render import draw_text
from coditect.workflow.rows import NodeRow
from dispatcher.ledger.workflows import queries
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.lone_ledger import Ledger, completed
from tests.unit.workflow.graphs import definitions


async def nodes(ledger: Ledger) -> list[NodeRow]:
    asked: dict[str, Any] = {"workflow": "w", "limit": 1_000}
    answer = await ledger.database.read(lambda tr: queries.nodes(tr, asked))
    return [NodeRow.read(row) for row in loads(dumps(answer))["nodes"]]


def without_input(node: Node) -> Node:
    match node.work:
        case Call() as call:
            return replace(node, work=replace(call, input=None))
        case Each(call=call) as each:
            return replace(node, work=replace(each, call=replace(call, input=None)))
        case SubWorkflow() as child:
            return replace(node, work=replace(child, input=None))
    return node


@given(definitions())
@settings(max_examples=30, deadline=None)
async def test_the_graph_of_a_run_is_that_of_its_definition_but_for_the_inputs(definition: Definition) -> None:
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(definition)

        told = definition_of(definition.name, await nodes(ledger))

    assert {one.name: one for one in told.nodes} == {one.name: without_input(one) for one in definition.nodes}


async def test_the_graph_of_a_run_counts_the_elements_of_its_maps() -> None:
    flow = Workflow("counted")
    flow.map("count", "input", From("item"), limit=5, name="each")
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition(), [1, 2, 3])
        await ledger.batch(ledger.finished(ledger.published.pop(), completed()))

        rows = await nodes(ledger)

    drawn = draw_text(definition_of("counted", rows), {row.name: row.state for row in rows})
    assert drawn.splitlines()[1] == "1  working  each  map count, at most 5: 1/3 completed, 2 published"


async def result_pages(ledger: Ledger) -> list[dict[str, Any]]:
    """Every page of the workflow's value."""
    pages: list[dict[str, Any]] = []
    after: str | None = None
    while not pages or after is not None:
        asked = {"workflow": "w"} | ({"after": after} if after else {})
        pages.append(await ledger.database.read(lambda tr: queries.result(tr, asked)))  # noqa: B023
        after = pages[-1]["next"]
    return pages


async def ended(nodes: int, value: Any, *, first: bool = False, last: bool = False) -> list[dict[str, Any]]:
    """The value of a workflow of so many nodes side by side, each with this value; after a first one, before a last."""
    flow = Workflow("wide")
    roots = [flow.task("a.first", name="first")] if first else []
    wide = [flow.task("a.wide", after=roots, name=f"n{number:04}") for number in range(nodes)]
    if last:
        flow.task("a.last", after=wide, name="o")
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition())
        while ledger.published:
            batch = [ledger.published.pop() for _ in range(min(100, len(ledger.published)))]
            await ledger.batch(*[ledger.finished(one, completed(value)) for one in batch])
        return await result_pages(ledger)


async def test_value_of_a_wide_workflow_comes_in_pages_that_leave_nothing_out() -> None:
    pages = await ended(2_050, 7, first=True)

    told: dict[str, Any] = {}
    for page in pages:
        told |= page["value"]
    assert [len(page["value"]) for page in pages] == [999, 1_000, 51]
    assert told == {f"n{number:04}": 7 for number in range(2_050)}


async def test_pages_of_large_values_are_small() -> None:
    pages = await ended(5, "x" * 100_000)

    assert [sorted(page["value"]) for page in pages] == [["n0000", "n0001"], ["n0002", "n0003"], ["n0004"]]


async def test_a_page_of_attempts_is_bounded_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST", 3)
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        flow = Workflow("wide")
        for number in range(5):
            flow.task("a.wide", name=f"n{number:04}")
        await ledger.start(flow.definition())
        asked: dict[str, Any] = {"workflow": "w", "limit": 1_000}
        pages = [await ledger.database.read(lambda tr: queries.attempts(tr, asked))]
        asked["after"] = pages[0]["next"]
        pages.append(await ledger.database.read(lambda tr: queries.attempts(tr, asked)))

    told = [[one["node"] for one in page["attempts"]] for page in pages]
    assert told == [["n0000", "n0001", "n0002"], ["n0003", "n0004"]]
    assert pages[-1]["next"] is None


async def test_value_of_the_only_last_node_is_the_workflow_s() -> None:
    (page,) = await ended(1, "it", first=True)

    assert (page["value"], page["next"]) == ("it", None)


async def test_only_last_node_of_more_nodes_than_a_page_is_found_on_its_page() -> None:
    pages = await ended(1_000, 7, first=True, last=True)

    assert [page["value"] for page in pages] == [{}, {"o": 7}]


async def test_a_node_tells_its_input_as_soon_as_it_is_known_and_the_trace_of_its_workflow() -> None:
    flow = Workflow("given")
    first = flow.task("a.first", {"number": 7}, name="first")
    flow.task("a.plain", after=[first], name="plain")
    flow.task("a.second", {"$from": "results.first"}, after=[first], name="second")
    flow.map("a.each", "input", From("item"), limit=5, name="each")
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition(), ["x", "y"])

        async def told(node: str) -> tuple[Any, bool]:
            asked = {"workflow": "w", "node": node}
            answer = await ledger.database.read(lambda tr: queries.node_input(tr, asked))
            return answer["input"], answer["evaluated"]

        before = [await told(node) for node in ("first", "plain", "second", "each", "each[1]")]
        ready = next(one for one in ledger.published if one.node_key.node == "first")
        await ledger.batch(ledger.finished(ready, completed("seen")))
        after = await told("second")
        with pytest.raises(NotFound):
            await told("none")

    assert before == [({"number": 7}, True), ({}, True), (None, False), (["x", "y"], True), ("y", True)]
    assert after == ("seen", True)
