"""The one claim: the only way in which a node gets to the broker.

A claim is a transaction of the shard's owner that finds the node ready, gives it a new publication number and a new
fence, and writes the outbox. Nothing else publishes a node, so nothing runs early, and what runs twice has two fences.
"""

from __future__ import annotations

from typing import Any

from coditect.model.capability import Priority
from coditect.model.ids import TaskId
from coditect.model.retry import Retry
from coditect.model.task import Owner, Task
from coditect.wire.blob_ref import has_claims
from coditect.wire.routing import task_key
from coditect.workflow.definition import Call
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import outbox
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import FLIGHTS, READY
from dispatcher.ledger.nodes import limits
from dispatcher.ledger.nodes.attempts import DIED
from dispatcher.ledger.nodes.inputs import body_of, failure_of
from dispatcher.ledger.rows import NodeRecord

LEVELS = tuple(Priority)
RETRY_TIMER = "retry"
DEFAULT_RETRY = Retry()


def offer(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """The node may run: it is claimed at once if that is allowed, there is room and nobody waits; else it waits."""
    call = _call(book, place)
    run = book.run(place.workflow)
    row.ready_ms = book.now_ms
    if run is not None and run.state is WorkflowState.PAUSED:
        book.move(place, row, TaskState.READY)
        return
    limits.wait(book, place, row, call)
    if book.terms.claim_on_record and book.has_room(call.capability) and not book.has_backlog(call.capability):
        publish(book, place, row, agent=book.take_free(call.capability))
        return
    _wait(book, place, row, call)


def queue(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """The ready node waits in the backlog for room."""
    _wait(book, place, row, _call(book, place))


def _wait(book: UnitOfWork, place: NodeKey, row: NodeRecord, call: Call) -> None:
    book.move(place, row, TaskState.READY)
    book.tr.set(_ready_key(book, place, row, call), b"")
    book.note_backlog(call.capability)


def claim(book: UnitOfWork, place: NodeKey) -> bool:
    """Publishes the node if it is ready and its workflow goes on; False when there is nothing to do."""
    row, run = book.node(place), book.run(place.workflow)
    if row is None or run is None or row.state is not TaskState.READY or run.state.terminal:
        return False
    leave_backlog(book, place, row)
    if run.state is WorkflowState.PAUSED or run.canceling:
        return False
    publish(book, place, row)
    return True


def backlog(book: UnitOfWork, capability: str, most: int) -> list[NodeKey]:
    """The capability's ready nodes, urgent ones first, then the oldest; at most so many."""
    found = book.tr.get_range(*READY.range((book.shard, capability)), limit=most)
    return [NodeKey(*READY.unpack(key)[4:6]) for key, _ in found]


def publish(book: UnitOfWork, place: NodeKey, row: NodeRecord, *, agent: str = "") -> None:
    """Gives the node a new publication and a new fence, and puts it into the outbox; `agent` as in `Publication`."""
    call = _call(book, place)
    try:
        body = body_of(book, place, row)
    except DamagedValue as error:
        book.unfit.append((place, failure_of(error)))
        return
    limits.wait(book, place, row, call)
    book.advance_fence(row)
    row.publication = book.next_number()
    row.published_ms = book.now_ms
    row.started_ms, row.agent = None, ""
    book.move(place, row, TaskState.PUBLISHED)
    book.take_room(call.capability)
    key = task_key(call.capability, call.priority)
    book.tr.set(FLIGHTS.pack((book.shard, place.workflow, place.node)), key.encode())
    outbox.put(book.tr, book.shard, outbox.Row(row.publication, place.workflow, place.node, row.fence))
    book.effects.publications.append(Publication(place, row.publication, _task(book, place, row, call, body), agent))


def _task(book: UnitOfWork, place: NodeKey, row: NodeRecord, call: Call, body: bytes) -> Task:
    task_id = TaskId(place.task_id)
    return Task(
        call.capability,
        call.priority,
        body,
        id=task_id,
        correlation_id=task_id,
        limits=limits.of(row, call),
        attempt=row.attempt,
        publication=row.publication,
        published_at_ms=book.now_ms,
        errors=_died(row) if row.suspect else (),
        owner=Owner(place.workflow, place.node, str(book.shard), row.fence),
        claims=body if has_claims(body) else None,
    )


def _died(row: NodeRecord) -> tuple[Any, ...]:
    """By this history an agent knows, without a claim, that the task is a suspect."""
    error = "An agent was gone before the attempt ended"
    return ({"agent": None, "attempt": row.attempt - 1, "type": "AgentLost", "message": error, "reason": DIED.reason},)


def leave_backlog(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """The ready node does not wait any more."""
    book.tr.clear(_ready_key(book, place, row, _call(book, place)))


def _ready_key(book: UnitOfWork, place: NodeKey, row: NodeRecord, call: Call) -> bytes:
    level = LEVELS.index(call.priority)
    return READY.pack((book.shard, call.capability, level, row.ready_ms or 0, place.workflow, place.node))


def _call(book: UnitOfWork, place: NodeKey) -> Call:
    call = book.call(place)
    assert call is not None
    return call
