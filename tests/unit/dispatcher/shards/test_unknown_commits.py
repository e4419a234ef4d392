"""A commit whose outcome is unknown was written, or it was not: memory learns from the ledger which."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.simulated_task_graph import MemoryTaskGraph
from coditect.wire.control import Verb
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import Asked, Claimed, Continue, Fill, Finished
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.queries import rows_of
from dispatcher.shards import publishing
from dispatcher.shards.in_flight import InFlight
from dispatcher.taskgraph.port import JobState
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import completed, failed
from tests.unit.dispatcher.lone_worker import CAPABILITY, ONLY, LoneWorker, open_worker


@pytest.mark.parametrize("doubt", ["timed out", "repeated"])
async def test_what_an_unknown_commit_claimed_is_published_and_leaves_no_row(lone: LoneWorker, doubt: str) -> None:
    lone.database.doubt = doubt

    await lone.start()

    await eventually(lone.published)
    assert lone.published() == 1
    assert lone.capacity.under_way(CAPABILITY) == 1

    await eventually(lone.is_recorded)


@pytest.mark.parametrize("doubt", ["timed out", "repeated"])
async def test_what_an_unknown_commit_ended_is_not_under_way(lone: LoneWorker, doubt: str) -> None:
    await lone.start()
    head, _ = await lone.database.read(lambda tr: rows_of(tr, "w"))
    lone.worker.status_cache.follow("w", head)
    claim = await lone.say(Claimed(ONLY, lone.flight.publication, "worker-1"))
    assert lone.worker.status_cache.get("w") is not None

    lone.database.doubt = doubt
    await lone.say(Finished(ONLY, claim.fence, lone.flight.publication, completed()))

    assert lone.worker.status_cache.get("w") is None
    await eventually(lambda: not len(lone.worker.in_flight))
    assert lone.capacity.under_way(CAPABILITY) == 0
    _, run = await lone.database.read(lambda tr: rows_of(tr, "w"))
    assert run.state.terminal


@pytest.mark.parametrize("way", ["timed out", "repeated", "closed"])
async def test_who_waits_for_an_end_asks_the_ledger_when_memory_does_not_know(lone: LoneWorker, way: str) -> None:
    await lone.start()
    with lone.worker.status_cache.waiting(NodeKey("w", "only")) as turn:
        if way == "closed":
            await lone.worker.close()
        else:
            lone.database.doubt = way
            await lone.say(Continue())

        assert turn.done()


@pytest.mark.parametrize("doubt", ["timed out", "repeated"])
@pytest.mark.parametrize("verb", [Verb.REDRIVE, Verb.RESUME, Verb.ANSWER, Verb.CANCEL])
async def test_request_of_an_unknown_commit_was_done_once(lone: LoneWorker, verb: Verb, doubt: str) -> None:
    await lone.start(gated=verb is Verb.ANSWER)
    body: dict[str, Any] = {"workflow": "w"}
    if verb in (Verb.REDRIVE, Verb.RESUME):
        await lone.say(Finished(ONLY, lone.flight.fence, lone.flight.publication, failed()))
        body |= {"node": "only"}
    elif verb is Verb.ANSWER:
        body |= {"node": "gate", "granted": True, "by": "ada"}
    await eventually(lambda: lone.published() == (verb is not Verb.ANSWER))
    more = 0 if verb is Verb.CANCEL else 1

    lone.database.doubt = doubt
    told = await lone.say(Asked(verb, body, "i"))

    assert told["workflow"] == "w"
    await eventually(lambda: len(lone.worker.in_flight) == more)
    assert await lone.say(Asked(verb, body, "i")) == told
    await eventually(lambda: lone.published() == (verb is not Verb.ANSWER) + more)


@pytest.mark.parametrize("doubt", ["timed out", "repeated"])
async def test_workflow_of_an_unknown_commit_is_shown_in_rq(doubt: str) -> None:
    """RQ would propose none of its nodes before the next comparison, so that each waits a second for its claim."""
    graph = MemoryTaskGraph()
    async with open_worker(graph) as lone:
        lone.database.doubt = doubt

        await lone.start(gated=True)

        await eventually(lambda: graph.state("w", "only") is JobState.DEFERRED)


async def test_claim_of_an_unknown_commit_is_known_to_the_orphan_detector(lone: LoneWorker) -> None:
    await lone.start()

    lone.database.doubt = "repeated"
    claim = await lone.say(Claimed(ONLY, lone.flight.publication, "worker-1"))

    await eventually(lambda: lone.flight.fence == claim.fence)
    assert lone.flight.agent == "worker-1"


@pytest.mark.parametrize("doubt", ["timed out", "repeated"])
async def test_batch_is_settled_once_when_the_ledger_does_not_tell_at_first(lone: LoneWorker, doubt: str) -> None:
    await lone.start()
    publication = lone.flight.publication
    lone.capacity.keep(CAPABILITY, 5)
    lone.worker.backlog.put_back(CAPABILITY, [("p1", NodeKey("w", f"none-{number}")) for number in range(9)])
    free = lone.capacity.room_for(CAPABILITY)
    told: list[Any] = []

    lone.database.doubt, lone.database.silent = doubt, 3
    lone.worker.put(Finished(ONLY, lone.flight.fence, publication, completed()), told.append)
    lone.worker.put(Fill(CAPABILITY, (ONLY,)), told.append)
    lone.worker.fill(CAPABILITY, 7)

    await eventually(lambda: not len(lone.worker.in_flight))
    assert lone.database.silent == 0
    assert len(told) == 2
    assert lone.capacity.room_for(CAPABILITY) == free + 1, "the room of the flight, and all that was kept meanwhile"


async def test_worker_that_is_in_doubt_looks_without_being_asked(lone: LoneWorker) -> None:
    await lone.start()
    lone.database.doubt, lone.database.silent = "repeated", 5
    await lone.say(Continue())

    await eventually(lambda: lone.database.silent == 0)


def test_flights_are_what_the_ledger_has() -> None:
    capacity = Capacity(lambda: 0.0)
    in_flight = InFlight(capacity)
    rows = {name: _published(number) for number, name in enumerate("abc", 1)}
    in_flight.agree([_found(name, row) for name, row in rows.items()], 5.0)
    rows["b"].publication, rows["b"].fence = 4, 2
    rows["c"].state, rows["c"].agent = TaskState.WORKING, "worker-1"

    in_flight.agree([_found(name, rows[name]) for name in "bc"], 6.0)

    found = {node_key.node: (flight.publication, flight.fence, flight.agent) for node_key, flight in in_flight}
    assert found == {"b": (4, 2, ""), "c": (3, 1, "worker-1")}
    assert capacity.under_way("work") == 2


def _published(number: int) -> NodeRecord:
    return NodeRecord(TaskState.PUBLISHED, publication=number, fence=1, published_ms=1_000)


def _found(name: str, row: NodeRecord) -> Transition:
    return Transition(NodeKey("w", name), row.state, "work", "p1", row)


async def test_publish_without_a_confirm_has_another_number(lone: LoneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "TASK_PUBLISH_SECONDS", 0.05)
    lone.server.block()
    await lone.start()
    first = lone.flight.publication

    await eventually(lambda: lone.flight.publication > first)
    lone.server.unblock()

    await eventually(lambda: lone.published() >= 2)
