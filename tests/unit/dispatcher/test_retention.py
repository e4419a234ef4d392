"""What nobody needs any more is taken away, in pages, by one dispatcher at a time, and nothing else is."""

from __future__ import annotations

import pytest

from coditect.errors import InputError
from coditect.model.capability import Priority
from coditect.wire.control import Verb
from coditect.workflow.documents.document import node_document
from coditect.workflow.states import WorkflowState
from dispatcher.ledger import answers, idempotency
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.keyspace import ANSWERS, ROOT, UPLOADS
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.workflows import queries, remove
from dispatcher.retention import DAY_MS, NAME, UPLOAD_MS, Retention
from dispatcher.taskgraph.port import Job, JobState
from tests.contract.graph.scene import counted
from tests.unit.dispatcher.broom import KEPT, Broom, ended, fan, keeping, kept_of
from tests.unit.dispatcher.lone_ledger import completed, failed
from tests.unit.dispatcher.pressing import children, shop


async def test_workflow_is_taken_away_with_everything_after_its_time_and_not_before(broom: Broom) -> None:
    await ended(broom, width=60)
    job = Job("w", "n0001", 0, Priority.P1, "work", (), JobState.FINISHED)
    await broom.graph.create([job])
    await broom.ledger.start(fan(2), workflow="alive")

    await broom.sweep(after_ms=7 * DAY_MS)
    assert (await broom.ledger.run()).state is WorkflowState.COMPLETED

    await broom.sweep(after_ms=7 * DAY_MS + 1)

    with pytest.raises(InputError):
        await broom.ledger.database.read(lambda tr: queries.rows_of(tr, "w"))
    assert (await counted(broom.graph, [0]))[JobState.FINISHED] == 0
    assert await broom.ledger.state("alive") is WorkflowState.RUNNING
    rows = await broom.ledger.database.read(lambda tr: tr.get_range(*ROOT.range()))
    assert not [key for key, _ in rows if "w" in ROOT.unpack(key)[1:]]


async def test_children_are_taken_away_with_their_parent_and_not_before(broom: Broom) -> None:
    await broom.ledger.start(shop())
    while not await children(broom.ledger):
        await broom.ledger.batch(broom.ledger.finished(broom.ledger.published.pop(), completed({"title": "Alice"})))
    (child,) = await children(broom.ledger)
    for _ in range(2):
        await broom.ledger.batch(broom.ledger.finished(broom.ledger.published.pop(), completed()))

    await broom.sweep(after_ms=7 * DAY_MS + 1)
    kept = await broom.ledger.state(child)
    await broom.ledger.play(lambda _: completed())
    await broom.sweep(after_ms=7 * DAY_MS + 1)

    assert kept is WorkflowState.COMPLETED
    rows = await broom.ledger.database.read(lambda tr: tr.get_range(*ROOT.range()))
    assert not [key for key, _ in rows if {"w", child} & {*map(str, ROOT.unpack(key)[1:])}]


async def test_large_workflow_goes_in_several_transactions_and_leaves_nothing(
    broom: Broom, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(broom, width=100)
    monkeypatch.setattr(remove, "PARTS", tuple((space, 7) for space, _ in remove.PARTS))

    await broom.sweep(after_ms=8 * DAY_MS)

    assert await broom.left() <= KEPT


async def test_interrupted_removal_goes_on_and_nobody_sees_the_rest(broom: Broom) -> None:
    await ended(broom, width=10)
    before_ms = broom.ledger.now_ms + 1
    assert await broom.ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=before_ms))
    assert await broom.ledger.database.run(lambda tr: remove.take_apart(tr, "w", before_ms=before_ms))
    assert not await broom.ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=before_ms))

    with pytest.raises(InputError):
        await broom.ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "sum"})
    await broom.sweep(after_ms=UPLOAD_MS)

    assert await broom.left() <= KEPT


async def test_unfinished_upload_goes_after_an_hour_and_a_chunk_after_that_is_refused(broom: Broom) -> None:
    definition = fan(3)
    chunk = {"workflow": "w", "name": "fan", "chunks": 2, "count": 4, "input": None}
    nodes = {node.name: node_document(node) for node in definition.nodes}
    first = dict(list(nodes.items())[:2])
    await broom.ledger.ask(Verb.START, chunk | {"chunk": 1, "nodes": first})

    await broom.sweep(after_ms=UPLOAD_MS)
    assert await broom.ledger.database.read(lambda tr: tr.get(UPLOADS.pack(("w",))))
    await broom.sweep(after_ms=UPLOAD_MS + 1)

    assert await broom.left() <= KEPT
    with pytest.raises(InputError, match="chunk"):
        await broom.ledger.ask(Verb.START, chunk | {"chunk": 2, "nodes": nodes})
    await broom.ledger.start(definition)
    assert await broom.ledger.state() is WorkflowState.RUNNING


async def test_keys_are_kept_while_their_workflows_run_and_go_with_them(broom: Broom) -> None:
    await broom.ledger.database.run(lambda tr: idempotency.claim(tr, "old", "gone", now_ms=broom.ledger.now_ms))
    await broom.ledger.start(fan(2), workflow="alive")
    await broom.ledger.database.run(lambda tr: idempotency.claim(tr, "mine", "alive", now_ms=broom.ledger.now_ms))

    for day in range(1, 30):
        await broom.sweep(after_ms=day * DAY_MS)

    now_ms = broom.ledger.now_ms + 29 * DAY_MS
    assert await broom.ledger.database.read(lambda tr: idempotency.read(tr, "mine", now_ms=now_ms)) == "alive"
    assert await broom.ledger.database.read(lambda tr: idempotency.holder(tr, "old")) is None


async def test_answers_go_after_a_day_and_not_before(broom: Broom) -> None:
    await ended(broom)
    asked = [Asked(Verb.PAUSE, {"workflow": "w"}, f"i{number}") for number in range(remove.MOST_ROWS + 5)]
    (refused, *_) = await broom.ledger.batch(*asked)

    await broom.sweep(after_ms=answers.KEEP_MS - 1)
    assert "answer" in await broom.left()
    broom.ledger.now_ms += 1
    later = Asked(Verb.PAUSE, {"workflow": "w"}, "later")
    await broom.ledger.batch(later)
    await broom.sweep(after_ms=answers.KEEP_MS - 1)
    rows = await broom.ledger.database.read(lambda tr: tr.get_range(*ANSWERS.range()))

    assert isinstance(refused, InputError)
    assert [ANSWERS.unpack(key) for key, _ in rows] == [(0, "later")]
    await broom.sweep(after_ms=answers.KEEP_MS)
    assert not {"answer", "answer_expiry"} & await broom.left()


async def test_another_dispatcher_sweeps_only_when_the_first_is_dead(broom: Broom) -> None:
    assert await broom.sweep()
    other = Retention(broom.retention._ports, owner="other", graph=None, keep_days=7)

    assert not await other.sweep()
    await broom.ledger.database.run(lambda tr: leases.renew(tr, "other", 1))
    assert not await other.sweep()
    await broom.ledger.database.run(lambda tr: leases.leave(tr, "me"))
    assert await other.sweep()
    assert not await broom.sweep()


async def test_who_loses_the_lease_removes_nothing_more(broom: Broom, monkeypatch: pytest.MonkeyPatch) -> None:
    await ended(broom)

    async def lose(*_: object) -> None:
        await broom.ledger.database.run(lambda tr: leases.leave(tr, "me"))
        await broom.ledger.database.run(lambda tr: leases.renew(tr, "other", 1))
        assert await broom.ledger.database.run(lambda tr: leases.acquire(tr, NAME, "other"))

    monkeypatch.setattr(broom.graph, "remove", lose)
    with pytest.raises(LostLease):
        await broom.sweep(after_ms=7 * DAY_MS + 1)

    assert await kept_of(broom) == ["w"]


async def test_a_workflow_is_kept_as_long_as_it_says_itself(broom: Broom) -> None:
    await broom.ledger.start(keeping("1h"), workflow="short")
    await broom.ledger.start(keeping("30d"), workflow="long")
    await broom.ledger.play(lambda _: completed(1))
    await ended(broom, "usual")

    left = {}
    for after_ms in (3_600_000, 3_600_001, 7 * DAY_MS + 1, 30 * DAY_MS, 30 * DAY_MS + 1):
        await broom.sweep(after_ms=after_ms)
        left[after_ms] = await kept_of(broom)

    assert list(left.values()) == [["long", "short", "usual"], ["long", "usual"], ["long"], ["long"], []]
    await broom.sweep(after_ms=31 * DAY_MS)
    assert await broom.left() <= KEPT


async def test_all_are_removed_at_once_however_many_ended(broom: Broom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.retention.MOST_ENDED", 3)
    for number in range(10):
        await broom.ledger.start(keeping("1h"), workflow=f"own{number}")
    await broom.ledger.play(lambda _: completed(1))
    for number in range(10):
        await ended(broom, f"usual{number}", width=1)

    await broom.sweep(after_ms=7 * DAY_MS + 1)

    assert await kept_of(broom) == []


async def test_those_that_are_kept_longer_hold_up_no_other(broom: Broom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.retention.MOST_ENDED", 3)
    for number in range(7):
        await broom.ledger.start(keeping("30d"), workflow=f"long{number}")
    await broom.ledger.play(lambda _: completed(1))
    await ended(broom, "usual")

    for _ in range(3):
        await broom.sweep(after_ms=8 * DAY_MS)

    assert await kept_of(broom) == [f"long{number}" for number in range(7)]


async def test_the_time_of_a_workflow_that_runs_again_begins_with_its_next_end(broom: Broom) -> None:
    await broom.ledger.start(keeping("1h"))
    await broom.ledger.play(lambda _: failed())
    await broom.ledger.pass_time(1_800)
    await broom.ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "only"})
    await broom.ledger.play(lambda _: completed(1))

    await broom.sweep(after_ms=3_600_000)
    before = await kept_of(broom)
    await broom.sweep(after_ms=3_600_001)

    assert (before, await kept_of(broom)) == (["w"], [])


async def test_a_wrong_retention_is_refused(broom: Broom) -> None:
    body = {"workflow": "w", "name": "n", "count": 1, "nodes": {"only": {"task": "work"}}, "retention": "soon"}

    with pytest.raises(InputError):
        await broom.ledger.ask(Verb.START, body)
