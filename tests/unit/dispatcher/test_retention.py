"""What nobody needs any more is taken away from ledger and RQ, as a whole, and nothing else is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulated_store import SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect import Retry, Workflow
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.errors import InputError
from coditect.messaging.event_publisher import Events
from coditect.model.capability import Priority
from coditect.model.ids import TaskId
from coditect.registry.port import ReferenceClock
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import node_document
from coditect.workflow.states import WorkflowState
from dispatcher.capacity import Capacity
from dispatcher.ledger import answers, idempotency
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.keyspace import REQUEST_ANSWERS, ROOT, RUNS, UPLOADS
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.workflows import queries, remove
from dispatcher.ports import Ports
from dispatcher.retention import DAY_MS, SHOWN_FAILED_MS, SHOWN_MS, SWEEP_LEASE, UPLOAD_MS, Retention
from dispatcher.taskgraph.port import Job, JobState
from tests.contract.graph.scene import counted
from tests.unit.dispatcher.coordination.test_handoffs import ask_others
from tests.unit.dispatcher.ledger.nodes.test_approval_policy import answer
from tests.unit.dispatcher.ledger.nodes.test_waits import signal
from tests.unit.dispatcher.ledger.workflows.restored import children, restore, shop
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, fan, one_node, tasks
from tests.unit.layers.scene import Opened

KEPT = {"shards", "beat", "lease", "published", "key", "key_expiry", "shown", "autonomy"}
"""What is there without any workflow."""


class At:
    """A clock that stands where the test puts it."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        return self.ms

    def new_id(self) -> TaskId:
        return TaskId("id")

    def chance(self) -> float:
        return 0.5


@dataclass
class Broom:
    """A ledger and whoever sweeps it."""

    ledger: Ledger
    graph: MemoryTaskGraph
    clock: At
    retention: Retention

    async def sweep(self, *, after_ms: int = 0) -> bool:
        self.clock.ms = self.ledger.now_ms + after_ms
        return await self.retention.sweep()

    async def left(self) -> set[str]:
        """What there are keys of."""
        rows = await self.ledger.rows(ROOT)
        return {str(ROOT.unpack(key)[0]) for key, _ in rows}


@pytest.fixture
async def broom() -> AsyncIterator[Broom]:
    server, clock, graph = MemoryServer(), At(), MemoryTaskGraph()
    async with SimulatedDatabase() as database, Supervisor() as background, MemoryBroker(server) as broker:
        events = Events(broker, clock, source="/dispatcher")
        ports = Ports(broker, database, events, ReferenceClock(clock), background, Capacity(lambda: 0.0))
        ledger = await Ledger.open(database)
        yield Broom(ledger, graph, clock, Retention(ports, owner="me", graph=graph, keep_days=7))


async def ended(broom: Broom, workflow: str = "w", width: int = 3) -> None:
    await broom.ledger.start(fan(width), {"x": 1}, workflow=workflow)
    await broom.ledger.play(lambda _: completed("y" * 70_000))
    assert await broom.ledger.state(workflow) is WorkflowState.COMPLETED


def keeping(retention: str) -> Definition:
    flow = Workflow("keeping", retention=retention)
    flow.task("work", name="only")
    return flow.definition()


async def kept_of(broom: Broom) -> list[str]:
    rows = await broom.ledger.rows(RUNS)
    return [str(RUNS.unpack(key)[0]) for key, _ in rows]


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
    rows = await broom.ledger.rows(ROOT)
    assert not [key for key, _ in rows if "w" in ROOT.unpack(key)[1:]]


async def test_children_are_taken_away_with_their_parent_and_not_before(broom: Broom) -> None:
    await broom.ledger.start(shop())
    await broom.ledger.end("order", completed({"title": "Alice"}))
    (child,) = await children(broom.ledger)
    await broom.ledger.complete("typeset", "bound")

    await broom.sweep(after_ms=7 * DAY_MS + 1)
    kept = await broom.ledger.state(child)
    await broom.ledger.play(lambda _: completed())
    await broom.sweep(after_ms=7 * DAY_MS + 1)

    assert kept is WorkflowState.COMPLETED
    rows = await broom.ledger.rows(ROOT)
    assert not [key for key, _ in rows if {"w", child} & {*map(str, ROOT.unpack(key)[1:])}]


async def test_large_workflow_goes_in_pieces_as_a_whole(broom: Broom, monkeypatch: pytest.MonkeyPatch) -> None:
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
    definition = fan(3).definition()
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
    assert await broom.ledger.database.read(lambda tr: idempotency.known(tr, "mine", "", now_ms=now_ms)) == "alive"
    assert await broom.ledger.database.read(lambda tr: idempotency.holder(tr, "old")) is None


async def test_answers_go_after_a_day_and_not_before(broom: Broom) -> None:
    await ended(broom)
    asked = [Asked(Verb.PAUSE, {"workflow": "w"}, f"i{number}") for number in range(remove.MAX_REMOVED_ROWS + 5)]
    (refused, *_) = await broom.ledger.batch(*asked)

    await broom.sweep(after_ms=answers.ANSWER_RETENTION_MS - 1)
    assert "answer" in await broom.left()
    broom.ledger.now_ms += 1
    later = Asked(Verb.PAUSE, {"workflow": "w"}, "later")
    await broom.ledger.batch(later)
    await broom.sweep(after_ms=answers.ANSWER_RETENTION_MS - 1)
    rows = await broom.ledger.rows(REQUEST_ANSWERS)

    assert isinstance(refused, InputError)
    assert [REQUEST_ANSWERS.unpack(key) for key, _ in rows] == [(0, "later")]
    await broom.sweep(after_ms=answers.ANSWER_RETENTION_MS)
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
        assert await broom.ledger.database.run(lambda tr: leases.acquire(tr, SWEEP_LEASE, "other"))

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


async def test_all_are_removed_however_many_are_kept_longer(broom: Broom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.retention.MOST_ENDED", 3)
    for number in range(7):
        await broom.ledger.start(keeping("30d"), workflow=f"long{number}")
        await broom.ledger.start(keeping("1h"), workflow=f"own{number}")
    await broom.ledger.play(lambda _: completed(1))
    for number in range(7):
        await ended(broom, f"usual{number}", width=1)
    for _ in range(3):
        await broom.sweep(after_ms=7 * DAY_MS + 1)

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


async def test_rq_keeps_what_lives_and_for_an_hour_what_failed(broom: Broom) -> None:
    for workflow, outcome in (("done", completed(1)), ("failed", failed()), ("lives", None)):
        await broom.ledger.start(tasks(first="", second=""), workflow=workflow)
        names = ("first", "second")
        ended = JobState.FINISHED if outcome is not None else JobState.STARTED
        await broom.graph.create([Job(workflow, node, 0, Priority.P1, "work", (), ended) for node in names])
        if outcome is not None:
            await broom.ledger.play(lambda _, outcome=outcome: outcome)  # type: ignore[misc]
        broom.ledger.published.clear()

    def shown() -> set[str]:
        return {one for one in ("done", "failed", "lives") if broom.graph.state(one, "second") is not None}

    await broom.sweep(after_ms=SHOWN_MS)
    at_once = shown()
    await broom.sweep(after_ms=SHOWN_MS + 1)
    soon = shown()
    await broom.sweep(after_ms=SHOWN_FAILED_MS + 1)

    assert at_once == {"done", "failed", "lives"}
    assert soon == {"failed", "lives"}
    assert shown() == {"lives"}


async def test_rq_keeps_what_runs_again_however_long_ago_it_ended_and_is_shown_it_again(broom: Broom) -> None:
    await broom.ledger.start(keeping("1h"))
    await broom.ledger.play(lambda _: failed())
    await broom.graph.create([Job("w", "only", 0, Priority.P1, "work", (), JobState.STARTED)])
    await broom.ledger.ask(Verb.RESUME, {"workflow": "w"})
    unshown = broom.ledger.seen[-1].unshown
    await broom.sweep(after_ms=8 * DAY_MS)

    assert unshown == ["w"]
    assert broom.graph.state("w", "only") is JobState.STARTED


@settings(max_examples=20, deadline=None)
@given(ends=st.lists(st.tuples(st.booleans(), st.integers(0, 90_000)), min_size=1, max_size=60))
async def test_whenever_workflows_end_each_is_forgotten_by_rq_in_its_time(ends: list[tuple[bool, int]]) -> None:
    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database)
        forgotten: set[str] = set()
        ended: dict[str, tuple[bool, int]] = {}
        for number, (fails, pause_ms) in enumerate(ends):
            workflow = f"w{number:02}"
            ledger.now_ms += pause_ms
            await ledger.start(one_node(), workflow=workflow)
            await ledger.play(lambda _, fails=fails: failed() if fails else completed(1))  # type: ignore[misc]
            ended[workflow] = fails, ledger.now_ms
            for failing, age_ms in ((False, SHOWN_MS), (True, SHOWN_FAILED_MS)):
                forgotten |= await forgotten_by_now(ledger, ledger.now_ms - age_ms, failed=failing)

            due = {
                one for one, (its, at) in ended.items() if at < ledger.now_ms - (SHOWN_FAILED_MS if its else SHOWN_MS)
            }
            assert forgotten == due


async def forgotten_by_now(ledger: Ledger, before_ms: int, *, failed: bool) -> set[str]:
    forgotten: set[str] = set()
    while True:
        found = await ledger.database.read(lambda tr: remove.shown(tr, 0, max(0, before_ms), failed=failed, limit=3))
        if found.cursor is None:
            return forgotten
        forgotten |= set(found.workflows)
        cursor = found.cursor
        await ledger.database.run(lambda tr, cursor=cursor: remove.note_shown(tr, 0, cursor, failed=failed))  # type: ignore[misc]


async def test_rq_forgets_what_is_kept_for_less_than_its_jobs(broom: Broom) -> None:
    broom.ledger.now_ms += DAY_MS
    await broom.ledger.start(keeping("1m"))
    await broom.graph.create([Job("w", "only", 0, Priority.P1, "work", (), JobState.FAILED)])
    await broom.ledger.play(lambda _: failed())

    await broom.sweep(after_ms=60_001)

    assert (await kept_of(broom), broom.graph.state("w", "only")) == ([], None)


OF_THE_TRAIL = {"audit", "audit_of"}
"""What outlives its workflow."""


async def take_apart(ledger: Ledger) -> None:
    """All of the workflow goes but its first row and that of its upload."""
    before_ms = ledger.now_ms + 1
    while await ledger.database.run(lambda tr: remove.take_apart(tr, "w", before_ms=before_ms)):
        pass
    while nodes := await ledger.database.read(lambda tr: remove.nodes_of(tr, "w")):
        await ledger.database.run(lambda tr, nodes=nodes: remove.forget(tr, "w", nodes, before_ms=before_ms))  # type: ignore[misc]


async def remove_whole(ledger: Ledger) -> None:
    before_ms = ledger.now_ms + 1
    assert await ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=before_ms))
    await take_apart(ledger)
    await ledger.database.run(lambda tr: remove.forget(tr, "w", [], before_ms=before_ms))


async def kinds_of_rows(ledger: Ledger) -> set[str]:
    """The kinds of the rows that name the workflow, by their key."""
    rows = await ledger.rows(ROOT)
    return {str(ROOT.unpack(key)[0]) for key, _ in rows if "w" in ROOT.unpack(key)[1:]} - OF_THE_TRAIL


async def test_nothing_is_left_of_a_workflow_that_did_all_that_leaves_rows(prompt_ledger: Ledger) -> None:
    flow = Workflow("all", labels={"team": "blue"})
    told = flow.signal("go", name="told", after=[flow.approval("now?", name="gate")])
    flow.task("work", name="one", after=[told], retry=Retry(max_attempts=2), compensate="undo")
    await prompt_ledger.start(flow)
    await answer(prompt_ledger, "gate")
    for name in ("go", "unheard"):
        await signal(prompt_ledger, name, identity=name)
    await ask_others(prompt_ledger)
    await prompt_ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "here"})
    await prompt_ledger.play(lambda _: failed(retryable=True))
    await prompt_ledger.pass_time(60)
    await prompt_ledger.play(lambda _: completed(1))
    await restore(prompt_ledger, "here")
    await prompt_ledger.play(lambda _: completed(2))
    assert await prompt_ledger.state() is WorkflowState.COMPLETED
    before = await kinds_of_rows(prompt_ledger)

    await remove_whole(prompt_ledger)

    parts = {str(ROOT.unpack(space.prefix)[0]) for space, _ in remove.PARTS}
    assert parts - before == {"awaiting", "child", "dead"}, "which have tests of their own"
    assert await kinds_of_rows(prompt_ledger) == set()


async def test_key_of_a_workflow_is_free_when_the_workflow_is_removed(ledger: Ledger) -> None:
    body = {"name": "one", "key": "k", "count": 1, "nodes": {"one": {"task": "work"}}}
    await ledger.ask(Verb.START, body | {"workflow": "w"})
    await ledger.play(lambda _: completed(1))

    await remove_whole(ledger)

    assert await ledger.ask(Verb.START, body | {"workflow": "x"}) == {"workflow": "x", "state": "accepted", "new": True}


async def test_workflow_that_begins_again_as_it_is_removed_stays(prompt_ledger: Ledger) -> None:
    await prompt_ledger.start_one()
    await prompt_ledger.play(lambda _: failed())
    removal = Opened(prompt_ledger.database.disk)
    assert remove.condemn(removal.tr, "w", before_ms=prompt_ledger.now_ms + 1)

    await prompt_ledger.ask(Verb.RESUME, {"workflow": "w"})

    assert not removal.commits()
    assert await prompt_ledger.state() is WorkflowState.RUNNING


async def test_workflow_that_is_sent_again_as_its_upload_is_removed_stays(prompt_ledger: Ledger) -> None:
    chunk = {"workflow": "w", "name": "two", "chunk": 1, "chunks": 2, "count": 2, "nodes": {"one": {"task": "work"}}}
    await prompt_ledger.ask(Verb.START, chunk)
    await take_apart(prompt_ledger)
    removal = Opened(prompt_ledger.database.disk)
    remove.forget(removal.tr, "w", [], before_ms=prompt_ledger.now_ms + 1)

    await prompt_ledger.start_one()

    assert not removal.commits()
    _, run = await prompt_ledger.database.read(lambda tr: queries.rows_of(tr, "w"))
    assert run.state is WorkflowState.RUNNING
