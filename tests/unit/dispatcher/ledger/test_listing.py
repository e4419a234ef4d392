"""Workflows by state: an index that follows every change, and what a store has to do that is older than it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from coditect import Workflow
from coditect.errors import InputError
from coditect.wire.control import Verb
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.handlers import listings
from dispatcher.ledger.keyspace import INDEXED, LABELED, RUNS, STATES, WORKFLOWS
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.ledger.workflows import remove
from dispatcher.store.transaction import Reads, Transaction
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


async def test_workflows_in_a_state_are_listed_by_an_index_that_follows_every_change(ledger: Ledger) -> None:
    flow = Workflow("one")
    flow.task("work", name="only")
    ids = [f"w{number:02}" for number in range(30)]
    for workflow in ids:
        await ledger.start(flow.definition(), workflow=workflow)
    await ledger.database.run(remove.index)
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
        await ledger.start(flow.definition(), workflow=workflow)

    def listed(**asked: Any) -> Any:
        return every_page(ledger, limit=2, **asked)

    assert [one["workflow"] for one in await listed(since=3_000, until=6_000)] == ids[4:1:-1]
    assert [one["workflow"] for one in await listed(since=8_000)] == [ids[7]]
    assert [one["workflow"] for one in await listed(name="odd", until=5_000, state="running")] == [ids[3], ids[1]]
    assert await listed(name="none") == []


async def test_an_older_store_is_looked_through_until_its_index_is_built(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MOST", 7)
    flow = Workflow("one")
    flow.task("work", name="only")
    ids = [f"w{number:02}" for number in range(30)]
    for workflow in ids:
        await ledger.start(flow.definition(), workflow=workflow)
    for publication in ledger.published[::10]:
        await ledger.batch(ledger.finished(publication, completed(1)))
    whole = await index_of(ledger)
    await ledger.database.run(lambda tr: tr.clear_range(*STATES.range()))

    before = [one["workflow"] for one in await every_page(ledger, state="completed", limit=2)]
    while await ledger.database.run(lambda tr: remove.index(tr, limit=4)):
        await ledger.database.read(lambda tr: listings.list_workflows(tr, {"state": "completed"}))
    after = [one["workflow"] for one in await every_page(ledger, state="completed", limit=2)]

    assert before == after == ["w20", "w10", "w00"]
    assert await index_of(ledger) == whole


@pytest.mark.once
async def test_a_state_is_listed_by_as_much_as_is_asked_for_however_many_are_kept(ledger: Ledger) -> None:
    def many(tr: Transaction) -> None:
        head, run = WorkflowRecord(0, "one", "", "", 1, 1).pack(), RunRecord(WorkflowState.COMPLETED).pack()
        for number in range(5_000):
            tr.set(WORKFLOWS.pack((f"w{number:04}",)), head)
            tr.set(RUNS.pack((f"w{number:04}",)), run)
            tr.set(STATES.pack(("completed", f"w{number:04}")), b"")
        tr.set(INDEXED.pack(), b"")

    await ledger.database.run(many)
    read: list[int] = []

    def counted(tr: Reads) -> object:
        told = listings.list_workflows(Counted(tr, read), {"state": "completed", "limit": 3})
        return [one["workflow"] for one in told["workflows"]]

    assert await ledger.database.read(counted) == ["w4999", "w4998", "w4997"]
    assert sum(read) <= 3 * 3 + 1


def labeled(**labels: str) -> Workflow:
    flow = Workflow("one", labels=labels)
    flow.task("work", name="only")
    return flow


async def test_workflows_are_listed_by_labels_with_every_other_condition(ledger: Ledger) -> None:
    for number in range(12):
        team, stage = ("blue", "red")[number % 2], ("test", "live", "new")[number % 3]
        await ledger.start(labeled(team=team, stage=stage).definition(), workflow=f"w{number:02}")
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


@pytest.mark.once
async def test_a_label_is_listed_by_as_much_as_is_asked_for_however_many_have_it(ledger: Ledger) -> None:
    def many(tr: Transaction) -> None:
        head = WorkflowRecord(0, "one", "", "", 1, 1, {"team": "x"}).pack()
        run = RunRecord(WorkflowState.COMPLETED).pack()
        for number in range(5_000):
            tr.set(WORKFLOWS.pack((f"w{number:04}",)), head)
            tr.set(RUNS.pack((f"w{number:04}",)), run)
            tr.set(LABELED.pack(("team", "x", f"w{number:04}")), b"")

    await ledger.database.run(many)
    read: list[int] = []

    def counted(tr: Reads) -> object:
        told = listings.list_workflows(Counted(tr, read), {"labels": {"team": "x"}, "limit": 3})
        return [one["workflow"] for one in told["workflows"]]

    assert await ledger.database.read(counted) == ["w4999", "w4998", "w4997"]
    assert sum(read) <= 3 * 3


@pytest.mark.parametrize(
    "labels", [{"": "x"}, {"team": ""}, {"team": 7}, {"te am": "x"}, {"team": "x" * 201}, {"team": "\ud800"}, ["team"]]
)
async def test_wrong_labels_are_refused(ledger: Ledger, labels: Any) -> None:
    body = {"workflow": "w", "name": "n", "count": 1, "nodes": {"only": {"task": "work"}}, "labels": labels}

    with pytest.raises(InputError):
        await ledger.ask(Verb.START, body)
    with pytest.raises(InputError):
        await ledger.database.read(lambda tr: listings.list_workflows(tr, {"labels": labels}))


def test_a_workflow_has_sixteen_labels_at_most() -> None:
    labels = {f"label{number}": "x" for number in range(16)}

    Workflow("one", labels=labels)
    with pytest.raises(InputError, match="too many labels"):
        Workflow("one", labels={**labels, "one-more": "x"})


async def test_a_workflow_that_is_removed_leaves_no_label(ledger: Ledger) -> None:
    await ledger.start(labeled(team="x").definition())
    await ledger.play(lambda _: completed(1))

    assert await ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=ledger.now_ms + 1))
    assert await ledger.database.read(lambda tr: tr.get_range(*LABELED.range())) == []


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
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        asked = body | {"after": after}
        page = await ledger.database.read(lambda tr, asked=asked: listings.list_workflows(tr, asked))  # type: ignore[misc]
        found += page["workflows"]
        after = page["next"]
        if after is None:
            return found


async def index_of(ledger: Ledger) -> set[tuple[str, str]]:
    rows = await ledger.database.read(lambda tr: tr.get_range(*STATES.range()))
    return {(str(state), str(workflow)) for state, workflow in (STATES.unpack(key) for key, _ in rows)}
