"""What the ledger answers: the graph of a run, its values, and lists of workflows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings

from chaos.simulated_store import SimulatedDatabase
from coditect import From, Workflow
from coditect.errors import InputError, NotFound
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads
from coditect.workflow.definition import Call, Definition, Each, Node, SubWorkflow
from coditect.workflow.documents.reader import definition_of
from coditect.workflow.render import draw_text
from coditect.workflow.rows import NodeRow
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.handlers import requests
from dispatcher.ledger.keyspace import LABELED, RUNS, STATES, WORKFLOWS
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.ledger.workflows import queries
from dispatcher.store.transaction import Reads, Transaction
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, one_node, wide
from tests.unit.workflow.graphs import definitions


async def nodes(ledger: Ledger) -> list[NodeRow]:
    answer = await ledger.read(queries.nodes, workflow="w", limit=1_000)
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
    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(definition)

        told = definition_of(definition.name, await nodes(ledger))

    assert {one.name: one for one in told.nodes} == {one.name: without_input(one) for one in definition.nodes}


async def test_the_graph_of_a_run_counts_the_elements_of_its_maps(ledger: Ledger) -> None:
    flow = Workflow("counted")
    flow.map("count", "input", From("item"), limit=5, name="each")
    await ledger.start(flow, [1, 2, 3])
    await ledger.complete("each[2]")

    rows = await nodes(ledger)

    drawn = draw_text(definition_of("counted", rows), {row.name: row.state for row in rows})
    assert drawn.splitlines()[1] == "1  working  each  map count, at most 5: 1/3 completed, 2 published"


async def ended(nodes: int, value: Any, *, first: bool = False, last: bool = False) -> list[dict[str, Any]]:
    """The value of a workflow of so many nodes side by side, each with this value; after a first one, before a last."""
    flow = Workflow("wide")
    roots = [flow.task("a.first", name="first")] if first else []
    wide = [flow.task("a.wide", after=roots, name=f"n{number:04}") for number in range(nodes)]
    if last:
        flow.task("a.last", after=wide, name="o")
    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow)
        while ledger.published:
            batch = [ledger.published.pop() for _ in range(min(100, len(ledger.published)))]
            await ledger.batch(*[ledger.finished(one, completed(value)) for one in batch])
        return await ledger.pages(queries.result, workflow="w")


async def test_value_of_a_wide_workflow_comes_in_pages_that_leave_nothing_out() -> None:
    pages = await ended(2_050, 7, first=True)

    assert [len(page["value"]) for page in pages] == [999, 1_000, 51]
    told = {name: value for page in pages for name, value in page["value"].items()}
    assert told == {f"n{number:04}": 7 for number in range(2_050)}


async def test_pages_of_large_values_are_small() -> None:
    pages = await ended(5, "x" * 100_000)

    assert [sorted(page["value"]) for page in pages] == [["n0000", "n0001"], ["n0002", "n0003"], ["n0004"]]


@pytest.mark.parametrize(
    ("nodes", "last", "values"), [(1, False, ["it"]), (1_000, True, [{}, {"o": "it"}])], ids=["a page", "more nodes"]
)
async def test_value_of_the_only_last_node_is_the_workflow_s(nodes: int, last: bool, values: list[Any]) -> None:
    pages = await ended(nodes, "it", first=True, last=last)

    assert [page["value"] for page in pages] == values
    assert pages[-1]["next"] is None


async def test_a_page_of_attempts_is_bounded_by_their_number(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MAX_PAGE", 3)
    await ledger.start(wide(5))

    pages = await ledger.pages(queries.attempts, workflow="w", limit=1_000)

    assert [[row["node"] for row in page["attempts"]] for page in pages] == [["n0", "n1", "n2"], ["n3", "n4"]]


async def test_a_node_tells_its_input_as_soon_as_it_is_known_and_the_trace_of_its_workflow(ledger: Ledger) -> None:
    flow = Workflow("given")
    first = flow.task("a.first", {"number": 7}, name="first")
    flow.task("a.plain", after=[first], name="plain")
    flow.task("a.second", {"$from": "results.first"}, after=[first], name="second")
    flow.map("a.each", "input", From("item"), limit=5, name="each")
    await ledger.start(flow, ["x", "y"])

    async def told(node: str) -> tuple[Any, bool]:
        answer = await ledger.read(queries.node_input, workflow="w", node=node)
        return answer["input"], answer["evaluated"]

    before = [await told(node) for node in ("first", "plain", "second", "each", "each[1]")]
    await ledger.end("first", completed("seen"))
    after = await told("second")
    with pytest.raises(NotFound):
        await told("none")

    assert before == [({"number": 7}, True), ({}, True), (None, False), (["x", "y"], True), ("y", True)]
    assert after == ("seen", True)


async def test_workflows_in_a_state_are_listed_by_an_index_that_follows_every_change(ledger: Ledger) -> None:
    ids = [f"w{number:02}" for number in range(30)]
    for workflow in ids:
        await ledger.start(one_node(), workflow=workflow)
    expected = dict.fromkeys(ids, "running")
    for number, publication in enumerate(list(ledger.published)):
        workflow = publication.node_key.workflow
        if number % 4 == 0:
            await ledger.batch(ledger.finished(publication, completed(1)))
            expected[workflow] = "completed"
        elif number % 4 == 1:
            await ledger.batch(ledger.finished(publication, failed()))
            expected[workflow] = "failed"
            if number % 8 == 1:
                await ledger.ask(Verb.RESUME, {"workflow": workflow})
                expected[workflow] = "running"
        elif number % 4 == 2:
            await ledger.ask(Verb.PAUSE, {"workflow": workflow})
            expected[workflow] = "paused"

    for state in ("running", "completed", "failed", "paused", "canceled"):
        listed = [one["workflow"] for one in await every_page(ledger, state=state, limit=4)]
        assert listed == sorted((one for one, its in expected.items() if its == state), reverse=True)
    assert await index_of(ledger) == {(its, one) for one, its in expected.items()}


async def test_workflows_are_listed_by_name_and_by_the_time_in_their_ids(ledger: Ledger) -> None:
    ids = [str(UUID(int=(1_000 * second << 80) | 7 << 76 | 2 << 62)) for second in range(1, 9)]
    for number, workflow in enumerate(ids):
        flow = Workflow("odd" if number % 2 else "even")
        flow.task("work", name="only")
        await ledger.start(flow, workflow=workflow)

    def listed(**asked: Any) -> Any:
        return every_page(ledger, limit=2, **asked)

    assert [one["workflow"] for one in await listed(since=3_000, until=6_000)] == ids[4:1:-1]
    assert [one["workflow"] for one in await listed(since=8_000)] == [ids[7]]
    assert [one["workflow"] for one in await listed(name="odd", until=5_000, state="running")] == [ids[3], ids[1]]
    assert await listed(name="none") == []


@pytest.mark.once
@pytest.mark.parametrize(("asked", "steps"), [({"state": "completed"}, 1), ({"labels": {"team": "x"}}, 0)])
async def test_no_more_is_read_than_is_asked_for(ledger: Ledger, asked: dict[str, Any], steps: int) -> None:
    def many(tr: Transaction) -> None:
        head = WorkflowRecord(0, "one", "", "", 1, 1, {"team": "x"}).pack()
        run = RunRecord(WorkflowState.COMPLETED).pack()
        for number in range(5_000):
            tr.set(WORKFLOWS.pack((f"w{number:04}",)), head)
            tr.set(RUNS.pack((f"w{number:04}",)), run)
            tr.set(STATES.pack(("completed", f"w{number:04}")), b"")
            tr.set(LABELED.pack(("team", "x", f"w{number:04}")), b"")

    await ledger.database.run(many)
    read: list[int] = []

    def counted(tr: Reads) -> object:
        told = requests.list_workflows(Counted(tr, read), asked | {"limit": 3})
        return [one["workflow"] for one in told["workflows"]]

    assert await ledger.database.read(counted) == ["w4999", "w4998", "w4997"]
    assert sum(read) <= 3 * 3 + steps


def labeled(**labels: str) -> Workflow:
    flow = Workflow("one", labels=labels)
    flow.task("work", name="only")
    return flow


async def test_workflows_are_listed_by_labels_with_every_other_condition(ledger: Ledger) -> None:
    for number in range(12):
        team, stage = ("blue", "red")[number % 2], ("test", "live", "new")[number % 3]
        await ledger.start(labeled(team=team, stage=stage), workflow=f"w{number:02}")
    for publication in list(ledger.published)[:6]:
        await ledger.batch(ledger.finished(publication, completed(1)))

    async def listed(**asked: Any) -> list[str]:
        return [one["workflow"] for one in await every_page(ledger, limit=2, **asked)]

    assert await listed(labels={"team": "blue"}) == ["w10", "w08", "w06", "w04", "w02", "w00"]
    assert await listed(labels={"team": "blue", "stage": "live"}) == ["w10", "w04"]
    assert await listed(labels={"team": "blue"}, state="completed") == ["w04", "w02", "w00"]
    assert await listed(labels={"team": "blue"}, name="other") == []
    assert await listed(labels={"team": "green"}) == []
    (row, *_) = await every_page(ledger, labels={"stage": "new"})
    assert row["labels"] == {"team": "red", "stage": "new"}


@pytest.mark.parametrize(
    "labels", [{"": "x"}, {"team": ""}, {"team": 7}, {"te am": "x"}, {"team": "x" * 201}, {"team": "\ud800"}, ["team"]]
)
async def test_wrong_labels_are_refused(ledger: Ledger, labels: Any) -> None:
    body = {"workflow": "w", "name": "n", "count": 1, "nodes": {"only": {"task": "work"}}, "labels": labels}

    with pytest.raises(InputError):
        await ledger.ask(Verb.START, body)
    with pytest.raises(InputError):
        await ledger.read(requests.list_workflows, labels=labels)


def test_a_workflow_has_sixteen_labels_at_most() -> None:
    labels = {f"label{number}": "x" for number in range(16)}

    Workflow("one", labels=labels)
    with pytest.raises(InputError, match="too many labels"):
        Workflow("one", labels={**labels, "one-more": "x"})


class Counted:
    """Counts the rows that a read brings."""

    def __init__(self, tr: Reads, read: list[int]) -> None:
        self._tr = tr
        self._read = read

    def __getattr__(self, name: str) -> Any:
        def reading(*given: Any, **how: Any) -> Any:
            found = getattr(self._tr, name)(*given, **how)
            self._read.append(len(found) if isinstance(found, list) else 1)
            return found

        return reading


async def every_page(ledger: Ledger, **body: Any) -> list[dict[str, Any]]:
    return [row for page in await ledger.pages(requests.list_workflows, **body) for row in page["workflows"]]


async def index_of(ledger: Ledger) -> set[tuple[str, str]]:
    keys = [STATES.unpack(key) for key, _ in await ledger.rows(STATES)]
    return {(str(state), str(workflow)) for state, workflow in keys}
