"""The continuation of work too long for one transaction, such as a cancel of many nodes, from a stored cursor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coditect.errors import InputError, NewerVersion, Retryable
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import CONTINUATIONS
from dispatcher.ledger.nodes import advance, children, claim
from dispatcher.ledger.nodes.advance import MAX_DEPENDENTS
from dispatcher.ledger.nodes.attempts import begin_anew
from dispatcher.ledger.nodes.inputs import INPUT, RESULT, body_at, body_of, failure_of, write
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import CHILD_END, COMPENSATE, UnitOfWork
from dispatcher.ledger.workflows import redrive_steps, republish, walks
from dispatcher.ledger.workflows.checkpoints import restore
from dispatcher.ledger.workflows.children import begin, end, undo
from dispatcher.store.errors import TransactionTooOld
from dispatcher.store.transaction import KeyValue

_BUGS = (LookupError, TypeError, ValueError, AttributeError, AssertionError)
_CANNOT_BE_DONE = (DamagedValue, InputError, NewerVersion, *_BUGS)
"""The errors by which a piece of unfinished work fails for good; any other error is one of the store."""


class Overdue(TransactionTooOld):
    """The error of a transaction that became too old over one piece of unfinished work, such as a large cancel."""

    def __init__(self, piece: bytes) -> None:
        super().__init__("A piece of what was left over takes too long")
        self.piece = piece


class SetAside(Retryable):
    """The error that a piece of unfinished work, such as a large cancel, failed or took too long, and is skipped."""

    def __init__(self, piece: bytes, *, overdue: bool = False) -> None:
        facts = dict(zip(("shard", "workflow", "node", "kind"), CONTINUATIONS.unpack(piece), strict=True))
        super().__init__("What was left over cannot be done; it is set aside", **facts)
        self.piece = piece
        self.overdue = overdue
        """Whether the piece of work took too long, perhaps on a slow machine: it is to be tried again."""


def go_on(unit: UnitOfWork, limit: int = 8) -> bool:
    """Continue up to `limit` pieces of the shard's unfinished work; return False if there were some, but none was done.

    Raises:
        SetAside: when a piece of work cannot be done.
        Overdue: when a piece of work took too long.
    """
    left, done = MAX_DEPENDENTS, 0
    pieces = _left_over(unit, limit)
    for key, cursor in pieces:
        if left <= 0 or unit.is_full:
            break
        try:
            left -= _go_on_with(unit, key, cursor, left)
            unit.tr.check_age()
        except TransactionTooOld as error:
            raise Overdue(key) from error
        except _CANNOT_BE_DONE as error:
            raise SetAside(key) from error
        done += 1
    advance.follow(unit, limit=0 if unit.defer_dependents else None)
    unit.effects.unfinished |= bool(_left_over(unit, 1))
    return done > 0 or not pieces


def _left_over(unit: UnitOfWork, limit: int) -> list[KeyValue]:
    """Return at most `limit` rows of work that the shard has still to go on with, but none set aside after an error."""
    aside = unit.caches.set_aside
    rows = unit.tr.get_range(*CONTINUATIONS.range((unit.shard,)), limit=limit + len(aside))
    return [row for row in rows if row[0] not in aside][:limit]


def _go_on_with(unit: UnitOfWork, key: bytes, cursor: bytes, limit: int) -> int:
    _, workflow, node, kind = CONTINUATIONS.unpack(key)
    unit.tr.clear(key)
    if kind == republish.REBUILD:
        return republish.go_on(unit, cursor)
    run = unit.run(workflow)
    if run is None:
        return 0
    run.todo -= 1
    return _CONTINUED[kind](unit, NodeKey(workflow, node), cursor.decode(), limit)


# The compensation of a workflow that did not complete: its completed nodes are undone, the last one first.
#
# Each compensation is a node of its own, `ship.compensate` for `ship`, with attempts, fences and a dead letter like any
# other. The next one begins when the one before has completed, from a stored piece of unfinished work, so whoever owns
# the shard goes on with it. The first one that does not complete ends the workflow; a redrive or a resume goes on
# there.


def compensate(unit: UnitOfWork, root: NodeKey, _: str, limit: int) -> int:
    """Begin the compensation of the last completed node to undo; when none is left, continue a restore under way."""
    run = unit.run(root.workflow)
    if run is None or run.state is not WorkflowState.COMPENSATING or run.canceling:
        return 1
    node_key = restore.next_compensation(unit, run, root.workflow)
    if node_key is None and run.restoring is not None and run.ended is WorkflowState.CANCELED:
        run.restoring = None  # canceled meanwhile: the nodes before the checkpoint are undone, too
        node_key = restore.next_compensation(unit, run, root.workflow)
    if node_key is None:
        return restore.discard(unit, root, limit) if run.restoring is not None else 1
    row = unit.node(node_key)
    if row is None:
        row = NodeRecord(TaskState.BLOCKED, own_input=True)
        unit.add_node(node_key, row)
        _begin_compensation(unit, node_key, row)
    elif row.state is TaskState.COMPLETED:  # it undid what a restore discarded, and its node has completed again
        begin_anew(unit, node_key, row)
        _begin_compensation(unit, node_key, row)
    elif row.state is TaskState.BLOCKED:  # a redrive has reset it
        _compensate(unit, node_key, row)
    elif row.state.terminal:
        begin_anew(unit, node_key, row)
        _compensate(unit, node_key, row)
    return min(1, limit)


def _begin_compensation(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    try:
        write(unit, node_key, INPUT, _compensation_input(unit, node_key.compensated))
    except (InputError, DamagedValue) as error:
        advance.fail(unit, node_key, row, failure_of(error))
    else:
        _compensate(unit, node_key, row)


def _compensate(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    if unit.call(node_key) is None:
        undo.begin(unit, node_key, row)
    else:
        claim.offer(unit, node_key, row)


def _compensation_input(unit: UnitOfWork, node_key: NodeKey) -> bytes:
    """Return the input of a node's compensation: an object of the node's own `input` and `result`."""
    row = unit.node(node_key)
    assert row is not None
    result = body_at(unit.tr, node_key, RESULT) or b"null"
    return b'{"input":%b,"result":%b}' % (body_of(unit, node_key, row), result)


_CONTINUED: Mapping[str, Callable[[UnitOfWork, NodeKey, str, int], int]] = {
    advance.RELEASE: advance.release,
    advance.EXPAND: advance.continue_expansion,
    advance.EVALUATE: advance.evaluate_later,
    advance.ELEMENTS: walks.cancel_elements,
    advance.CANCEL: walks.cancel,
    advance.RESUME: walks.resume,
    advance.SHOW: walks.show,
    advance.AGAIN: redrive_steps.go_on,
    redrive_steps.FIND: redrive_steps.find,
    COMPENSATE: compensate,
    children.START: begin.start,
    children.CANCEL: begin.cancel,
    CHILD_END: end.ended,
    restore.STOP: restore.stop,
    restore.RETURN: restore.go_on_with_state,
    restore.DISCARD: restore.go_on,
}
