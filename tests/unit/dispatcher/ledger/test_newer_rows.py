"""Nodes that a later build wrote are left alone, and stop nothing else; definitions are stored as they were."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from hypothesis import given

from chaos.simulated_store import SimulatedDatabase
from coditect import After, Priority, Retry, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.model.result import Outcome
from coditect.workflow.definition import Approval, Call, Definition, Each, Node, OnFailure, OnTimeout
from coditect.workflow.documents.document import node_document
from coditect.workflow.documents.reader import read_node
from coditect.workflow.states import TaskState
from dispatcher.ledger import definitions as definitions_module
from dispatcher.ledger import timers, versions
from dispatcher.ledger.commands import Command, Due, Fill, Finished, Proposed, Rebuild
from dispatcher.ledger.definitions import MOST_READ_BYTES, OVERHEAD_BYTES, Caches, Definitions, known
from dispatcher.ledger.effects import Defined, NodeKey, Publication
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import claim
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import BYTES_PER_STEP, UnitOfWork
from dispatcher.shards import batch, worker
from dispatcher.shards import timers as timer_service
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.transaction import Transaction
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, fan, tasks, wide
from tests.unit.dispatcher.lone_worker import CAPABILITY, ONLY, LoneWorker, open_worker, start_of, unconfirm
from tests.unit.dispatcher.planes import lone_dispatcher
from tests.unit.workflow.graphs import definitions


async def rewrite(database: SimulatedDatabase, node_key: NodeKey) -> bytes:
    """Writes the node as a later release; its row as it was."""
    key = STATUSES.pack(node_key)
    row = await database.read(lambda tr: tr.get(key))
    assert row is not None
    newer = b"%d%b" % (versions.VERSION + 1, row)
    await database.run(lambda tr: tr.set(key, newer))
    return row


@pytest.mark.parametrize("newer", ["second", "third"])
async def test_continuation_that_meets_one_is_passed_over(lone: LoneWorker, newer: str) -> None:
    outcomes = {"a": failed(), "b": completed()}
    for workflow in outcomes:
        await lone.say(start_of(workflow, tasks(CAPABILITY, first="", second="first", third="second")))
    await eventually(lambda: lone.published() == 2)
    await rewrite(lone.database, NodeKey("a", newer))

    for node_key, flight in lone.worker.in_flight:
        lone.worker.put(Finished(node_key, flight.fence, flight.publication, outcomes[node_key.workflow]))

    await eventually(lambda: [node_key for node_key, _ in lone.worker.in_flight] == [NodeKey("b", "second")])
    await eventually(lambda: lone.published() == 3)


async def test_shard_with_one_under_way_publishes_others(lone: LoneWorker, caplog: pytest.LogCaptureFixture) -> None:
    flow = wide(("newer", "older"), CAPABILITY)
    await lone.start(flow)
    await eventually(lambda: lone.published() == 2)
    await lone.worker.close()
    as_it_was = await rewrite(lone.database, NodeKey("w", "newer"))
    await unconfirm(lone)

    lone.worker = ShardWorker(lone.worker.lease, lone.ports, on_lost=lambda _: None, nudge=lambda: None)
    await lone.worker.open()
    await eventually(lambda: lone.published() == 3)
    under_way = {node_key.node for node_key, _ in lone.worker.in_flight}
    await lone.worker.close()

    assert under_way == {"older"}
    assert lone.worker.newer == 1
    await lone.database.run(lambda tr: tr.set(STATUSES.pack(("w", "newer")), as_it_was))
    assert NodeKey("w", "newer") in (await lone.unsent()).values(), "whoever can read it publishes it"
    assert [vars(one)["nodes"] for one in caplog.records if "left alone" in one.message] == [1]


async def test_one_counts_once_however_often_its_shard_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "STEP_MS", 10)
    async with open_worker() as lone, MemoryBroker(lone.server, name="successor") as broker:
        await lone.start()
        await eventually(lambda: lone.published() == 1)
        await lone.worker.close()
        await rewrite(lone.database, ONLY)
        async with lone_dispatcher(broker, lone.database, owner="me") as running:
            await eventually(lambda: 0 in running.ownership.workers)
            await running.ownership._close(0)
            await eventually(lambda: 0 in running.ownership.workers)

            assert running.ownership.figures()["newer"] == 1


async def test_result_of_one_is_kept_for_it(
    lone: LoneWorker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[NodeKey] = []
    record = batch.COMMANDS[Finished]

    def count(unit: UnitOfWork, command: Finished) -> Any:
        tried.append(command.node_key)
        return record(unit, command)

    monkeypatch.setattr(batch, "COMMANDS", {**batch.COMMANDS, Finished: count})
    monkeypatch.setattr(worker, "PAUSES_OF_KEPT", 1)
    await lone.start()
    await eventually(lambda: lone.published() == 1)
    as_it_was = await rewrite(lone.database, ONLY)

    answer = lone.worker.ask(Finished(ONLY, lone.flight.fence, lone.flight.publication, completed()))
    await eventually(lambda: len(tried) > 10 * worker.MAX_RESULT_TRIES)
    settled_before = answer.done()
    await lone.database.run(lambda tr: tr.set(STATUSES.pack(ONLY), as_it_was))

    await answer
    row = await lone.database.read(lambda tr: tr.get(STATUSES.pack(ONLY)))
    assert not settled_before
    assert row is not None
    assert (NodeRecord.unpack(row).state, lone.refused("unrecorded")) == (TaskState.COMPLETED, 0)
    assert sum("left alone" in one.message for one in caplog.records) == 1


@pytest.mark.once
async def test_timer_of_one_is_looked_at_with_pauses(lone: LoneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    act = batch.COMMANDS[Due]

    def count(unit: UnitOfWork, command: Due) -> Any:
        looked.append(monotonic())
        return act(unit, command)

    monkeypatch.setattr(batch, "COMMANDS", {**batch.COMMANDS, Due: count})
    monkeypatch.setattr(timer_service, "AGAIN_MS", 100)
    await lone.start()
    await rewrite(lone.database, ONLY)
    await lone.database.run(lambda tr: timers.put(tr, 0, Timer(*ONLY, claim.RETRY_TIMER, 0)))

    lone.worker.timer_service.look_again()
    await eventually(lambda: len(looked) >= 10)

    pauses = [later - earlier for earlier, later in pairwise(looked)]
    assert sum(pause > 0.09 for pause in pauses) >= 4, "each look is two tries"


async def test_broker_that_lost_everything_gets_all_but_them(ledger: Ledger) -> None:
    await ledger.start(fan(3))
    ledger.published.clear()
    await rewrite(ledger.database, NodeKey("w", "n0001"))

    await ledger.batch(Rebuild("marker-1", "marker-1"))

    assert [publication.node_key.node for publication in ledger.published] == ["n0000", "n0002"]


TWO = (NodeKey("w", "n0000"), NodeKey("w", "n0001"))


@pytest.mark.parametrize("command", [Fill("work", TWO), Proposed(TWO)], ids=["backlog", "proposed"])
async def test_ready_one_is_passed_over(ledger: Ledger, command: Command) -> None:
    ledger.room = {"": 0}
    await ledger.start(fan(3))
    await rewrite(ledger.database, NodeKey("w", "n0000"))
    ledger.room = {"": int(isinstance(command, Proposed))}

    await ledger.batch(command)

    assert [publication.node_key.node for publication in ledger.published] == ["n0001"]


def release(version: int) -> Definition:
    """A workflow of one name, whose later versions undo in another way, and have a node more."""
    flow = Workflow("release")
    last = flow.task("build", {"version": version}, name="build", compensate=f"undo_of_{version}")
    for number in range(version):
        last = flow.task(f"step_of_{version}", last.result, name=f"step_{number}")
    return flow.definition()


async def test_running_workflow_keeps_the_definition_it_began_with_over_an_upgrade() -> None:
    async with SimulatedDatabase() as database:
        before = await Ledger.open(database)
        await before.start(release(1), workflow="old")
        begun = before.published

        after = Ledger(database, before.lease, Policy(0), published=begun)  # the next build has nothing in memory
        await after.start(release(2), workflow="new")
        ran: dict[str, list[str]] = {"old": [], "new": []}

        def note(one: Publication) -> Outcome:
            ran[one.node_key.workflow].append(one.task.capability)
            return failed() if one.node_key.node == "step_0" else completed("built")

        await after.play(note)

    assert ran["old"] == ["build", "step_of_1", "undo_of_1"]
    assert ran["new"] == ["build", "step_of_2", "undo_of_2"]


ROWS: list[tuple[bytes, Node]] = [
    (b'{"task":"work"}', Node("n", Call("work"))),
    (
        b'{"task":"code.review","input":{"a":[{"$from":"input.a"},null,1.5]},"priority":"p0","timeout":"5m",'
        b'"start_within":"1500ms","deadline":"2d","heartbeat":"45s",'
        b'"retry":{"max_attempts":2,"first":"250ms","cap":"1h"},"compensate":"code.undo",'
        b'"after":["a",{"node":"b","on_failure":"skip"},{"node":"c","on_failure":"allow"}],"join":2,"when":"input.b"}',
        Node(
            "n",
            Call(
                "code.review",
                {"a": [{"$from": "input.a"}, None, 1.5]},
                Priority.P0,
                timeout_ms=300_000,
                retry=Retry(2, "250ms", "1h"),
                compensate="code.undo",
                start_within_ms=1_500,
                deadline_ms=172_800_000,
                heartbeat_ms=45_000,
            ),
            (After("a"), After("b", OnFailure.SKIP), After("c", OnFailure.ALLOW)),
            2,
            "input.b",
        ),
    ),
    (
        b'{"map":"work","over":"input.list","limit":10000,"input":{"$from":"item"},"priority":"p2","timeout":"30s",'
        b'"after":["a","b"],"join":"any"}',
        Node(
            "n",
            Each(Call("work", {"$from": "item"}, Priority.P2, timeout_ms=30_000), "input.list", 10_000),
            (After("a"), After("b")),
            "any",
        ),
    ),
    (b'{"approval":"Ship it?"}', Node("n", Approval("Ship it?"))),
    (
        '{"approval":"Größe ändern?","timeout":"2h","on_timeout":"grant","after":["a"],"when":"input"}'.encode(),
        Node("n", Approval("Größe ändern?", 7_200_000, OnTimeout.GRANT), (After("a"),), "all", "input"),
    ),
]
"""A row of each kind of node, with the fewest fields and with all; stores hold such rows."""


@pytest.mark.parametrize(("row", "node"), ROWS)
def test_a_node_s_row_stays_as_it_is_to_the_byte(row: bytes, node: Node) -> None:
    assert versions.NODE_DOCUMENT.pack(node_document(node)) == row
    assert known(NodeKey("w", "n"), row) == node
    assert read_node("n", versions.NODE_DOCUMENT.unpack(row)) == node


@given(definitions(most=6))
def test_a_node_is_read_from_its_row_as_it_was(definition: Definition) -> None:
    for node in definition.nodes:
        assert known(NodeKey("w", node.name), versions.NODE_DOCUMENT.pack(node_document(node))) == node


def test_definitions_take_no_more_than_their_bytes_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions_module, "MAX_CACHED_BYTES", 2 * (OVERHEAD_BYTES + 10))
    definitions = Definitions()
    node_keys = [NodeKey("w", f"n{number}") for number in range(3)]
    for node_key in (*node_keys[:2], node_keys[0]):  # one that is read again is new
        definitions.note({node_key: (b"x" * 10, None)})
    definitions.note({node_keys[2]: (b"y" * 10, None)})
    kept = [definitions.row(node_key) for node_key in node_keys]
    definitions.note({node_keys[0]: (b"x" * 10_000, None)})

    assert kept == [b"x" * 10, None, b"y" * 10]
    assert len(definitions) == 0


def test_what_a_node_s_row_says_goes_with_the_row() -> None:
    definitions, node_key = Definitions(), NodeKey("w", "n")
    node = Node("n", Call("one"))

    found = []
    for told in ((b"one", None), (b"one", node), (b"other", None), None):
        definitions.note({node_key: told})
        found.append((definitions.row(node_key), definitions.node(node_key)))

    assert found == [(b"one", None), (b"one", node), (b"other", None), (None, None)]


def test_of_the_nodes_that_were_read_the_first_are_let_go_by_the_bytes_of_their_rows() -> None:
    definitions, node = Definitions(), Node("n", Call("one"))
    large, node_keys = b"x" * (MOST_READ_BYTES // 4), [NodeKey("w", f"n{number}") for number in range(5)]
    definitions.note(dict.fromkeys(node_keys, (large, node)))
    too_large = NodeKey("w", "large")
    kept = [definitions.node(node_key) for node_key in node_keys]

    definitions.note({too_large: (large * 5, node)})

    assert kept == [None, *[node] * 4]
    assert definitions.row(too_large) == large * 5
    assert definitions.node(too_large) is None


def test_follower_of_a_node_is_known_as_long_as_its_definition_is() -> None:
    definitions, first, second = Definitions(), NodeKey("w", "first"), NodeKey("w", "second")
    follows = Node("second", Call("one"), (After("first"),))
    joins = Node("second", Call("one"), (After("first"), After("other")))
    large = (bytes(MOST_READ_BYTES), Node("large", Call("one")))
    found = []
    for told in ((b"row", follows), (b"row", None), (b"row", joins), (b"row", follows), None, (b"row", follows)):
        definitions.note({second: told})
        found.append(definitions.follower(first))
    definitions.note({NodeKey("w", "large"): large})

    assert found == [second, None, None, second, None, second]
    assert definitions.follower(first) is None


async def test_what_is_remembered_of_a_node_is_not_read_again(ledger: Ledger) -> None:
    flow = Workflow("two")
    flow.task("work", {"x": "y" * 1_000}, after=[flow.task("work", name="first")], name="second")
    await ledger.start(flow)
    node_key = NodeKey("w", "second")
    node, row = ledger.definitions.node(node_key), ledger.definitions.row(node_key)
    assert node is not None and row is not None

    def look(tr: Transaction, known: Defined | None) -> tuple[Node, int, Mapping[NodeKey, Defined | None]]:
        caches = Caches()
        caches.definitions.note({node_key: known})
        unit = UnitOfWork(tr, ledger.policy, caches, now_ms=0, chance=0.0, room={})
        return unit.definition(node_key), unit.steps, unit.close().definitions

    found = [await ledger.database.run(partial(look, known=known)) for known in (None, (row, None), (row, node))]

    cost = len(row) // BYTES_PER_STEP
    assert cost > 0
    assert found == [(node, cost, {node_key: (row, node)}), (node, cost, {node_key: (row, node)}), (node, 0, {})]


async def test_nothing_is_remembered_of_nodes_that_ended(ledger: Ledger) -> None:
    await ledger.start(tasks(first="", second="first"))
    at_first = len(ledger.definitions)
    await ledger.play(lambda _: completed())

    assert (at_first, len(ledger.definitions)) == (2, 0)
    assert ledger.definitions.row(NodeKey("w", "first")) is None
