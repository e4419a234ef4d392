"""The progress of a workflow: how its nodes begin, end, and release their dependents.

A node that ends releases its dependents, each of which may run, end, or go on waiting. The transaction goes on with
them as long as it is small; the rest lies under "todo" with a cursor, and a later transaction goes on there. So a node
with 100,000 dependents holds up no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from coditect.errors import InputError
from coditect.model.result import Failure
from coditect.wire.json import dumps
from coditect.workflow.definition import Call, Each, Node, OnFailure, SubWorkflow, Work
from coditect.workflow.expressions import Account
from coditect.workflow.states import Tally, TaskState
from dispatcher.ledger import values
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue, ValueBeyondBound
from dispatcher.ledger.keyspace import CONTINUATIONS, DEAD, EDGES
from dispatcher.ledger.nodes import ahead, children, claim, compensations, joins, limits, waits, withdrawals
from dispatcher.ledger.nodes.approvals.gates import REFUSALS
from dispatcher.ledger.nodes.attempts import BY_OTHERS, RESTORED, begin_anew, say_failed
from dispatcher.ledger.nodes.inputs import (
    FAILURE,
    INPUT,
    NO_EXPRESSIONS,
    RESULT,
    Inputs,
    before,
    failure_of,
    gathered,
    has_expressions,
    inputs_of,
    list_of,
    scope_of,
    value_of,
    write,
)
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import LARGEST_BYTES

MAX_DEPENDENTS = 1_000
"""The largest number of dependents that one transaction releases."""
MOST_STEPS_HERE = 50_000
"""The most evaluation steps of a node's expressions in a transaction, about 50 ms; beyond it they run outside."""
MAX_SHOWN_NODES = 500
AHEAD = 100
"""The number of nodes whose rows are read ahead by one read."""

RELEASE, EXPAND, CANCEL, RESUME, SHOW, AGAIN = "release", "expand", "cancel", "resume", "show", "again"
EVALUATE, ELEMENTS = "evaluate", "elements"
_POLICIES = {policy.value.encode(): policy for policy in OnFailure}
ROOT = ""
"""The name of the virtual predecessor of every node that has no predecessor."""


def end(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, state: TaskState, *, reason: str = "") -> None:
    """Put a node into the given final state, and note it for a later step, which tells the node's dependents."""
    limits.clear(unit, node_key, row)
    run = unit.move(node_key, row, state)
    if state is TaskState.COMPLETED:
        compensations.note(unit, node_key)
        node = unit.definition(node_key)
        if node.join != "all" or isinstance(node.work, Each):
            joins.say_of(unit, node_key, "merge.completed")
    row.finished_ms, row.reason = run.after_checkpoint(unit.now_ms), reason
    if state is TaskState.DEAD:
        unit.tr.set(DEAD.pack(node_key), b"")
    unit.ended.append(node_key)


def fail(
    unit: UnitOfWork,
    node_key: NodeKey,
    row: NodeRecord,
    failure: Failure,
    *,
    state: TaskState = TaskState.FAILED,
    said: bool = False,
) -> None:
    """End a node as failed, or in another given state, and store its failure.

    `said`: the event about the failed attempt was published when the attempt ended.
    """
    write(unit, node_key, FAILURE, dumps(failure.as_json()))
    unit.effects.failures[node_key] = failure
    if not said:
        say_failed(unit, node_key, row, failure)
    end(unit, node_key, row, state, reason=failure.reason)


def follow(unit: UnitOfWork, *, limit: int | None = None) -> None:
    """End nodes that turned out unfit to run, and tell dependents of nodes that ended, as far as limits permit.

    The dependents run, end or wait. What is beyond the limits is left to later transactions; with `most` 0 all is.
    """
    left, done = MAX_DEPENDENTS if limit is None else limit, 0
    while unit.ended or unit.unfit:
        if unit.unfit:
            _give_up(unit, *unit.unfit.popleft())
            continue
        if not done % AHEAD and len(unit.ended) > 1 and left > 0:
            unit.expect_ends(islice(unit.ended, AHEAD))
        done += 1
        node_key = unit.ended.popleft()
        if left <= 0 or unit.is_full:
            unit.leave(node_key, RELEASE)
            continue
        left -= release(unit, node_key, "", left)


def _give_up(unit: UnitOfWork, node_key: NodeKey, failure: Failure) -> None:
    """End a node with the given failure: as rejected if an approval rule or check refused it, otherwise as failed."""
    row, state = unit.node(node_key), TaskState.REJECTED if failure.reason in REFUSALS else TaskState.FAILED
    if row is not None and not row.state.terminal:
        withdrawals.call_off(unit, node_key, row)
        fail(unit, node_key, row, failure, state=state)


def drop(unit: UnitOfWork, node_key: NodeKey, kind: str) -> bool:
    """Delete the stored record that a node's work of one kind is unfinished; return whether there was one."""
    run = unit.run(node_key.workflow)
    key = CONTINUATIONS.pack((unit.shard, node_key.workflow, node_key.node, kind))
    if run is None or not run.todo or unit.tr.get(key) is None:
        return False
    unit.tr.clear(key)
    run.todo -= 1
    return True


# -- dependents ---------------------------------------------------------------------------------------------


def begin(unit: UnitOfWork, workflow: str) -> None:
    """Note a newly accepted workflow, so that a later step of the transaction begins its nodes without predecessors."""
    unit.ended.append(NodeKey(workflow, ROOT))


def release(unit: UnitOfWork, node_key: NodeKey, after: str, limit: int) -> int:
    """Tell a node's end to up to `most` dependents (names after `after`) or to its map; return how many, at least 1.

    An element's end goes to its map, a compensation's to the list of nodes to undo. While a redrive or restore resets
    nodes, the end is left to a later transaction.
    """
    if node_key.is_derived:
        (_element_ended if node_key.is_element else compensations.settle)(unit, node_key)
        return 1
    if _is_held(unit, node_key.workflow):
        unit.leave(node_key, RELEASE, after)
        return 1
    edges = unit.dependents(node_key, after, limit + 1)
    if not edges and not after:
        _note_last(unit, node_key)
    dependents = [
        (NodeKey(node_key.workflow, EDGES.unpack(key)[2]), _POLICIES[policy]) for key, policy in edges[:limit]
    ]
    count = 0
    for dependent, policy in dependents:
        if not count % AHEAD:
            ahead.of_dependents(unit, [node for node, _ in dependents[count : count + AHEAD]])
        if count and unit.is_full:  # each may record an input of a MiB
            break
        _tell(unit, dependent, node_key, policy)
        count += 1
    if len(edges) > count:
        unit.leave(node_key, RELEASE, dependents[count - 1][0].node)
    return max(1, count)


def _is_held(unit: UnitOfWork, workflow: str) -> bool:
    """Tell whether ends must not be passed on to dependents yet, because a redrive or restore resets nodes."""
    run = unit.run(workflow)
    if run is None or not run.redriving or run.canceling:
        return False
    return CONTINUATIONS.pack((unit.shard, workflow, ROOT, AGAIN)) not in unit.caches.set_aside


def _note_last(unit: UnitOfWork, node_key: NodeKey) -> None:
    run, row = unit.run(node_key.workflow), unit.node(node_key)
    if run is not None and row is not None:
        run.lasts[row.state.value] = run.lasts.get(row.state.value, 0) + 1


def _tell(unit: UnitOfWork, node_key: NodeKey, before: NodeKey, policy: OnFailure) -> None:
    row = unit.node(node_key)
    if row is None or row.state is not TaskState.BLOCKED:
        return
    decision: TaskState | None = TaskState.READY
    if before.node != ROOT:
        ended = unit.node(before)
        assert ended is not None
        earlier, row.tally = row.tally, row.tally.with_end(policy, ended.state)
        decision = joins.decision(unit, node_key, row.tally)
        if earlier.needed < earlier.met + earlier.open:  # it joins some of its predecessors
            joins.say(unit, node_key, earlier, row.tally, decision)
    if decision is TaskState.READY:
        for predecessor, predecessor_row in joins.open_predecessors(unit, node_key) if row.tally.open else ():
            cancel_node(unit, predecessor, predecessor_row)
        may_run(unit, node_key, row)
    elif decision is not None:
        end(unit, node_key, row, decision, reason=BY_OTHERS)


# -- what may run -------------------------------------------------------------------------------------------


def may_run(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Begin a node that its predecessors permit to run, skip it if its condition is false, or cancel or fail it."""
    if is_over(unit.run(node_key.workflow)):
        end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
        return
    node = unit.definition(node_key)
    if not has_expressions(node):
        _begin(unit, node_key, row, node, NO_EXPRESSIONS)
        return
    account = Account(MOST_STEPS_HERE)
    try:
        rows = unit.seen(before(node, node_key.workflow))
        scope = scope_of(unit.tr.snapshot, node_key, node, rows, account)
        expanded = isinstance(node.work, Each) and has_elements(unit, node_key)
        inputs = inputs_of(node, scope, account, has_elements=expanded)
    except (InputError, DamagedValue) as error:
        if account.overdrawn:
            evaluate_later(unit, node_key)
        else:
            fail(unit, node_key, row, failure_of(error))
    else:
        _begin(unit, node_key, row, node, inputs)
    unit.steps += account.spent


def evaluate_later(unit: UnitOfWork, node_key: NodeKey, cursor: str = "", limit: int = 1) -> int:
    """Have a node's slow expressions evaluated outside of transactions; return `most`, as the number of steps used."""
    token = cursor or f"{unit.now_ms} {unit.chance}"
    unit.leave(node_key, EVALUATE, token)
    unit.effects.evaluations.append((node_key, token))
    return limit


def evaluated(unit: UnitOfWork, node_key: NodeKey, token: str, inputs: Inputs | Failure) -> None:
    """Begin a node with its expressions' values, or fail it with their failure; ignore an outdated evaluation."""
    if unit.tr.get(evaluation_key(unit.shard, node_key)) != token.encode():
        return
    drop(unit, node_key, EVALUATE)
    row = unit.node(node_key)
    if (
        row is None
        or row.state is not TaskState.BLOCKED
        or joins.decision(unit, node_key, row.tally) is not TaskState.READY
    ):
        return
    if is_over(unit.run(node_key.workflow)):
        end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
    elif isinstance(inputs, Failure):
        fail(unit, node_key, row, inputs)
    else:
        _begin(unit, node_key, row, unit.definition(node_key), inputs)


def evaluation_key(shard: int, node_key: NodeKey) -> bytes:
    """Return the store's key for the unfinished evaluation of a node's expressions."""
    return CONTINUATIONS.pack((shard, node_key.workflow, node_key.node, EVALUATE))


def _begin(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, node: Node, inputs: Inputs) -> None:
    if not inputs.holds:
        end(unit, node_key, row, TaskState.SKIPPED, reason="condition")
        return
    try:
        _begin_work(unit, node_key, row, node.work, inputs.bodies)
    except (InputError, DamagedValue) as error:
        fail(unit, node_key, row, failure_of(error))


def _begin_work(
    unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, work: Work, bodies: Sequence[bytes] | None
) -> None:
    match work:
        case Call() | SubWorkflow():
            if bodies is not None:
                write(unit, node_key, INPUT, bodies[0])
                row.own_input = True
            if isinstance(work, SubWorkflow):
                children.begin(unit, node_key, row)
            elif not waits.delay(unit, node_key, row, work):
                claim.offer(unit, node_key, row)
        case Each():
            if not has_elements(unit, node_key) and bodies is not None:
                if bodies:
                    write(unit, node_key, INPUT, list_of(bodies))
                expand(unit, node_key, row, len(bodies))
            else:  # they keep their inputs, though the list may be another one by now
                expand(unit, node_key, row, len(value_of(unit.tr, node_key, INPUT)))
        case waiting:
            if waits.begin(unit, node_key, row, waiting, bodies):
                end(unit, node_key, row, TaskState.COMPLETED)


# -- maps ---------------------------------------------------------------------------------------------------


def has_elements(unit: UnitOfWork, node_key: NodeKey) -> bool:
    """Tell whether a map has begun to make nodes for its elements; nodes that a restore discarded do not count."""
    return (first := unit.node(node_key.element(0))) is not None and first.reason != RESTORED


def expand(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, count: int) -> None:
    """Begin a map: later transactions make a node for each element or rerun failed ones; an empty map ends at once."""
    row.tally = Tally(count, count)
    joins.say_of(unit, node_key, "split.created", parts=count)
    row.ready_ms = unit.now_ms
    unit.move(node_key, row, TaskState.WORKING)
    if count:
        unit.leave(node_key, EXPAND, "0")
    else:
        _end_map(unit, node_key, row)


def continue_expansion(unit: UnitOfWork, node_key: NodeKey, cursor: str, limit: int) -> int:
    """Go through up to `most` map elements from `cursor` on, make or rerun unfinished ones; return how many, or 1."""
    first = number = int(cursor)
    row = unit.node(node_key)
    if row is None or row.state is not TaskState.WORKING:
        return 1
    try:
        bodies = value_of(unit.tr, node_key, INPUT)
    except DamagedValue as error:
        fail(unit, node_key, row, failure_of(error))
        return 1
    may_exist = True
    while number < min(first + limit, len(bodies)):
        if number > first and unit.is_full:
            break
        element = node_key.element(number)
        child = unit.node(element) if may_exist else None
        may_exist = child is not None  # behind one that was not made is none
        if child is None:
            child = NodeRecord(TaskState.BLOCKED, own_input=True)
            unit.add_node(element, child)
            write(unit, element, INPUT, dumps(bodies[number]), first=True)
            claim.offer(unit, element, child)
        elif child.state is TaskState.COMPLETED:
            row.tally = row.tally.with_end(OnFailure.FAIL, child.state)
        else:
            write(unit, element, INPUT, dumps(bodies[number]))  # another one after a restore
            begin_anew(unit, element, child)
            claim.offer(unit, element, child)
        number += 1
    if number < len(bodies):
        unit.leave(node_key, EXPAND, str(number))
    elif not row.tally.open:
        _end_map(unit, node_key, row)
    return max(1, number - first)


def _element_ended(unit: UnitOfWork, element: NodeKey) -> None:
    node_key = element.defined
    row, ended = unit.node(node_key), unit.node(element)
    if row is None or ended is None or row.state is not TaskState.WORKING:
        return
    row.tally = row.tally.with_end(OnFailure.FAIL, ended.state)
    if not row.tally.open:
        _end_map(unit, node_key, row)


def _end_map(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """End a map whose elements have all ended: in the worst failed one's state, or completed with the results' list.

    A list that is too large, or a damaged result, fails the map.
    """
    tally = row.tally
    if tally.worst is not None:
        end(unit, node_key, row, tally.worst, reason="element")
        return
    try:
        node_keys = [values.ValueKey(*node_key.element(number), RESULT) for number in range(tally.met)]
        results = (body or b"null" for body in values.read_all(unit.tr.snapshot, node_keys))
        joins.say_of(unit, node_key, "join.created", met=tally.met)
        write(unit, node_key, RESULT, list_of(gathered(results)))
    except DamagedValue as error:
        fail(unit, node_key, row, failure_of(error))
        return
    except ValueBeyondBound:
        message = f"The list of {tally.met} values has more than the {LARGEST_BYTES} bytes that are kept"
        fail(unit, node_key, row, Failure("result_too_large", "TooLarge", message, fix="return references, not values"))
        return
    end(unit, node_key, row, TaskState.COMPLETED)


# -- called off ----------------------------------------------------------------------------------------------


def cancel_node(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """End a node as canceled, with a cancel to the agent that may have its task; one that runs a child ends later.

    A node that runs a child ends later: when the child has ended. The elements of a map follow in later transactions.
    """
    if children.cancel(unit, node_key, row):
        return
    if row.state is TaskState.WORKING and not row.publication and not is_over(unit.run(node_key.workflow)):
        unit.leave(node_key, ELEMENTS, "0")  # of a workflow that is over, each node is canceled anyway
    withdrawals.call_off(unit, node_key, row)
    end(unit, node_key, row, TaskState.CANCELED, reason="canceled")


def is_over(run: RunRecord | None) -> bool:
    """Tell whether a workflow takes no new work: it is unknown, has ended, or is being canceled."""
    return run is None or run.state.terminal or run.canceling
