"""The loop of a node that repeats its task until an expression over the result holds, or its bound is reached.

The number of ended iterations is a stored value of the node, which only a node with a loop has.
"""

from __future__ import annotations

from coditect.errors import InputError
from coditect.model.result import Failure
from coditect.wire.json import dumps, loads
from coditect.workflow.definition import Repeat
from coditect.workflow.expressions import Account, repeat_ends
from coditect.workflow.states import TaskState
from dispatcher.ledger import values
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes import advance, claim, limits
from dispatcher.ledger.nodes.attempts import write_attempt
from dispatcher.ledger.nodes.inputs import ITERATIONS, failure_of, value_of, write
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork

_MOST_REACHED = "The loop's condition did not hold after {} iterations"


def goes_on(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, repeat: Repeat, body: bytes) -> bool:
    """Begin a node's next iteration, or fail or cancel the node; return False if its loop has ended with the result."""
    account = Account(advance.MOST_STEPS_HERE)
    try:
        ends = repeat_ends(repeat, loads(body), account)
    except InputError as error:
        advance.fail(unit, node_key, row, failure_of(error))
        return True
    unit.steps += account.spent
    place = values.ValueKey(node_key.workflow, node_key.node, ITERATIONS)
    done = int(value_of(unit.tr, node_key, ITERATIONS) or 0) + 1
    if ends:
        values.clear(unit.tr, place)
        return False
    if advance.is_over(unit.run(node_key.workflow)):
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
    elif done >= repeat.most:
        values.clear(unit.tr, place)
        fix = "raise `most`, or look at what the last iteration told"
        advance.fail(unit, node_key, row, Failure("until", "LoopEnded", _MOST_REACHED.format(done), fix=fix))
    else:
        write(unit, node_key, ITERATIONS, dumps(done))
        write_attempt(unit, node_key, row, "completed", None)
        _begin_next(unit, node_key, row, repeat)
    return True


def _begin_next(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, repeat: Repeat) -> None:
    limits.cancel_timeout(unit, node_key, row)
    row.attempt, row.start_by_ms, row.suspect, row.doubted, row.losses = 1, None, False, (), 0
    if not repeat.every_ms:
        claim.offer(unit, node_key, row)
        return
    unit.move(node_key, row, TaskState.RETRY_WAIT)
    due_ms = unit.now_ms + repeat.every_ms
    unit.set_timer(Timer(node_key.workflow, node_key.node, claim.RETRY_TIMER, due_ms, row.fence))
