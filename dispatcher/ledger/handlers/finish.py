"""Collect: what agents tell about owned tasks is recorded, and what follows from it is done.

A result counts when its fence is the node's: the last attempt that was claimed. Everything older is refused and
counted, whoever sends it and however late.
"""

from __future__ import annotations

from dataclasses import replace

from coditect.model.result import NOT_BEGUN, Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.wire.control import Claim, Verdict
from coditect.workflow.states import TaskState
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.commands import Began, Claimed, Finished, Heard, Lost
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import FLIGHTS
from dispatcher.ledger.nodes import advance, claim, limits
from dispatcher.ledger.nodes.attempts import DIED, UNDER_WAY, UNRECORDABLE, write_attempt
from dispatcher.ledger.nodes.inputs import RESULT, write
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer


def finished(book: UnitOfWork, command: Finished) -> None:
    """Records how an attempt ended, once."""
    place, outcome = command.place, command.outcome
    row = book.node(place)
    if row is None:
        book.effects.strange += 1
        return
    if row.state not in UNDER_WAY or not _is_current(row, command):
        book.effects.late += not (row.state.terminal and row.fence == command.fence)
        return
    if outcome.status is not Status.COMPLETED:
        outcome = limits.judged(book, row, outcome)
    _take_in(book, place, row, outcome)
    if outcome.status is Status.COMPLETED:
        write(book, place, RESULT, outcome.body, first=True)
        if command.free and (call := book.call(place)) is not None:
            book.note_free(row.agent, call.capability)
        advance.end(book, place, row, TaskState.COMPLETED)
    elif outcome.status is Status.CANCELED:
        advance.end(book, place, row, TaskState.CANCELED, reason="canceled")
    else:
        _failed(book, place, row, replace(command, outcome=outcome))


def _is_current(row: NodeRecord, command: Finished) -> bool:
    if not command.fence:
        return row.publication == command.publication > 0
    return row.fence == command.fence


def _take_in(book: UnitOfWork, place: NodeKey, row: NodeRecord, outcome: Outcome) -> None:
    """The attempt is over. How it ended stands in the node's row until another one takes its place."""
    row.agent = outcome.agent_id or row.agent
    if outcome.started_at_ms is not None:
        row.started_ms = outcome.started_at_ms
    _leave_flight(book, place)


def _leave_flight(book: UnitOfWork, place: NodeKey) -> None:
    book.tr.clear(FLIGHTS.pack((book.shard, place.workflow, place.node)))


def _failed(book: UnitOfWork, place: NodeKey, row: NodeRecord, command: Finished) -> None:
    status, failure = command.outcome.status, command.outcome.failure or Failure("failed", "", "")
    if advance.is_over(book.run(place.workflow)):
        advance.end(book, place, row, TaskState.CANCELED, reason="canceled")
    elif failure.reason == NOT_BEGUN.reason:
        claim.offer(book, place, row)
    elif (delay_ms := _retry_ms(book, place, row, command)) is not None:
        write_attempt(book, place, row, status.value, failure)
        _retry_later(book, place, row, delay_ms)
    else:
        state = TaskState.REJECTED if status is Status.REJECTED else TaskState.FAILED
        if failure.reason in (DIED.reason, UNRECORDABLE):
            state = TaskState.DEAD
        advance.fail(book, place, row, failure, state=state)


def _retry_ms(book: UnitOfWork, place: NodeKey, row: NodeRecord, command: Finished) -> int | None:
    """After how long the failed attempt is followed by another; None when it is not.

    The node's own policy decides, or else the capability's, whose word the agent brings. What no agent told, because
    the broker or we gave the message up, goes by the default.
    """
    outcome = command.outcome
    if outcome.status is not Status.FAILED or outcome.failure is None or not outcome.failure.retryable:
        return None
    if _own_policy(book, place) is None and outcome.agent_id is not None:
        return command.retry_ms
    policy = _policy(book, place)
    return round(1000 * policy.delay_seconds(row.attempt, book.chance)) if row.attempt < policy.max_attempts else None


def _own_policy(book: UnitOfWork, place: NodeKey) -> Retry | None:
    call = book.call(place)
    return call.retry if call is not None else None


def _policy(book: UnitOfWork, place: NodeKey) -> Retry:
    return _own_policy(book, place) or claim.DEFAULT_RETRY


def _retry_later(book: UnitOfWork, place: NodeKey, row: NodeRecord, delay_ms: int) -> None:
    limits.told(book, place, row)
    row.attempt += 1
    row.start_by_ms = None
    book.move(place, row, TaskState.RETRY_WAIT)
    timer = Timer(place.workflow, place.node, claim.RETRY_TIMER, book.now_ms + delay_ms, row.fence)
    timers.put(book.tr, book.shard, timer)
    book.effects.timers = True


def began(book: UnitOfWork, command: Began) -> None:
    """Records that the attempt runs, if it may."""
    started = command.started
    place = NodeKey(started.workflow, started.node)
    row = book.node(place)
    if row is None or row.state not in UNDER_WAY or row.fence != started.fence:
        heard(book, Heard(place, started.fence))
        return
    row.agent = started.agent
    if row.state is TaskState.PUBLISHED:
        row.started_ms = started.at_ms
    limits.began(book, place, row)
    book.move(place, row, TaskState.WORKING)


def heard(book: UnitOfWork, command: Heard) -> None:
    """Who runs what nobody wants any more is told so, again: the first cancel is sent once, and may reach nobody.

    Unwanted is what is older than the node's end, or than the publication by which it works. The letter names the last
    such publication, and so never ends a newer attempt.
    """
    place, row = command.place, book.node(command.place)
    if row is None:
        return
    told_its_end = row.state is TaskState.COMPLETED and row.fence == command.fence
    if row.state.terminal and not told_its_end:
        book.effects.cancels.append((place, row.publication))
    elif row.state is TaskState.WORKING and command.fence < row.fence and row.publication > 1:
        book.effects.cancels.append((place, row.publication - 1))


def claimed(book: UnitOfWork, command: Claimed) -> Claim:
    """Whether a delivery that is not the first of its publication may run, and as which attempt.

    A newer publication or the node's end makes it stale. Otherwise it runs with a new fence, so that whoever had it
    before can say nothing any more; if that one may have started, this is another attempt. It cannot have by a grant
    of this transaction: claims of agents that are gone lie in the queue when nobody answered for a while. A repeated
    claim changes nothing, the agent may work by the first answer already, and is a word of it. It may wait for a slot,
    so how long it takes is counted when it tells that it runs.
    """
    place = command.place
    row, run = book.node(place), book.run(place.workflow)
    if row is None or run is None:
        return Claim(Verdict.STALE, known=False)
    if row.state not in UNDER_WAY or command.publication < row.publication:
        return Claim(Verdict.STALE)
    if limits.too_late(book, row):
        _leave_flight(book, place)
        advance.fail(book, place, row, limits.START_TIMEOUT)
        return Claim(Verdict.STALE)
    if row.state is TaskState.WORKING and row.agent == command.agent:
        book.move(place, row, TaskState.WORKING)
        return Claim(Verdict.RUN, row.fence, row.attempt, row.suspect)
    if row.state is TaskState.WORKING and place not in book.granted:
        write_attempt(book, place, row, "lost", DIED)
        if row.attempt >= _policy(book, place).max_attempts:
            _leave_flight(book, place)
            advance.fail(book, place, row, DIED, state=TaskState.DEAD)
            return Claim(Verdict.STALE)
        row.attempt += 1
        row.suspect = True
    book.granted.add(place)
    book.advance_fence(row)
    row.agent, row.started_ms = command.agent, book.now_ms
    book.move(place, row, TaskState.WORKING)
    return Claim(Verdict.RUN, row.fence, row.attempt, row.suspect)


def lost(book: UnitOfWork, command: Lost) -> None:
    """The publication, or the agent that had it, is gone: the node is published anew.

    Nothing is lost when somebody else has it by now: an agent may have begun while it was looked for in vain.
    """
    place = command.place
    outbox.clear(book.tr, book.shard, [command.publication])
    row, run = book.node(place), book.run(place.workflow)
    if row is None or run is None or row.state not in UNDER_WAY or row.publication != command.publication:
        return
    if row.agent != command.agent:
        return
    if advance.is_over(run):
        advance.cancel_node(book, place, row)
        return
    if row.state is TaskState.WORKING:
        write_attempt(book, place, row, "lost", DIED)
        if row.attempt >= _policy(book, place).max_attempts:
            _leave_flight(book, place)
            advance.fail(book, place, row, DIED, state=TaskState.DEAD)
            return
        row.attempt += 1
        row.suspect = True
        limits.told(book, place, row)
    claim.publish(book, place, row)
