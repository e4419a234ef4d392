"""The compensation of a workflow that did not complete: its completed nodes are undone, the last one first.

Each compensation is a node of its own, `ship.compensate` for `ship`, with attempts, fences and a dead letter like any
other. The next one begins when the one before has completed, from a stored piece of unfinished work, so whoever owns
the shard goes on with it. The first one that does not complete ends the workflow; a redrive or a resume goes on there.
"""

from __future__ import annotations

from coditect.errors import InputError
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.nodes import advance, claim
from dispatcher.ledger.nodes.attempts import begin_anew
from dispatcher.ledger.nodes.inputs import INPUT, RESULT, body_at, body_of, failure_of, write
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.checkpoints import restore
from dispatcher.ledger.workflows.children import undo


def go_on(unit: UnitOfWork, root: NodeKey, _: str, most: int) -> int:
    """Begin the compensation of the last completed node to undo; when none is left, continue a restore under way."""
    run = unit.run(root.workflow)
    if run is None or run.state is not WorkflowState.COMPENSATING or run.canceling:
        return 1
    node_key = restore.next_compensation(unit, run, root.workflow)
    if node_key is None and run.restoring is not None and run.ended is WorkflowState.CANCELED:
        run.restoring = None  # canceled meanwhile: the nodes before the checkpoint are undone, too
        node_key = restore.next_compensation(unit, run, root.workflow)
    if node_key is None:
        return restore.discard(unit, root, most) if run.restoring is not None else 1
    row = unit.node(node_key)
    if row is None:
        row = NodeRecord(TaskState.BLOCKED, own_input=True)
        unit.add_node(node_key, row)
        _begin(unit, node_key, row)
    elif row.state is TaskState.COMPLETED:  # it undid what a restore discarded, and its node has completed again
        begin_anew(unit, node_key, row)
        _begin(unit, node_key, row)
    elif row.state is TaskState.BLOCKED:  # a redrive has reset it
        _carry_out(unit, node_key, row)
    elif row.state.terminal:
        begin_anew(unit, node_key, row)
        _carry_out(unit, node_key, row)
    return min(1, most)


def _begin(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    try:
        write(unit, node_key, INPUT, _input(unit, node_key.compensated))
    except (InputError, DamagedValue) as error:
        advance.fail(unit, node_key, row, failure_of(error))
    else:
        _carry_out(unit, node_key, row)


def _carry_out(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    if unit.call(node_key) is None:
        undo.begin(unit, node_key, row)
    else:
        claim.offer(unit, node_key, row)


def _input(unit: UnitOfWork, node_key: NodeKey) -> bytes:
    """Return the input of a node's compensation: an object of the node's own `input` and `result`."""
    row = unit.node(node_key)
    assert row is not None
    result = body_at(unit.tr, node_key, RESULT) or b"null"
    return b'{"input":%b,"result":%b}' % (body_of(unit, node_key, row), result)
