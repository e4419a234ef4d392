"""How a workflow goes on: what may run, what ends, and what follows from that.

A node that ends releases its dependents, each of which may run, end, or go on waiting. That goes on in the same
transaction as long as it is small; what is left over lies under "todo" with a cursor, and a later transaction goes on
there. So a node with 100,000 dependents holds up nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from coditect.errors import InputError
from coditect.model.result import Failure
from coditect.wire.json import dumps
from coditect.workflow.definition import Approval, Call, Each, OnFailure
from coditect.workflow.expressions import Account
from coditect.workflow.join import Tally
from coditect.workflow.states import TaskState
from dispatcher.ledger import timers, values
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue, ValueBeyondBound
from dispatcher.ledger.keyspace import DEAD, EDGES, FLIGHTS, TODO
from dispatcher.ledger.nodes import approvals, claim, limits
from dispatcher.ledger.nodes.attempts import BY_OTHERS, begin_anew
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
from dispatcher.ledger.values import LARGEST_BYTES

MOST_STEPS = 1_000
"""Dependents that one transaction looks at."""
MOST_STEPS_HERE = 50_000
"""Of one node's expressions within a transaction, a twentieth of a second; what takes more is evaluated outside."""
MOST_SHOWN = 500
AHEAD = 100
"""Nodes that are read before they are looked at, at once."""

RELEASE, EXPAND, CANCEL, RESUME, SHOW, AGAIN = "release", "expand", "cancel", "resume", "show", "again"
EVALUATE = "evaluate"
_POLICIES = {policy.value.encode(): policy for policy in OnFailure}
ROOT = ""
"""Everything that comes after nobody comes after the beginning."""


def end(book: UnitOfWork, place: NodeKey, row: NodeRecord, state: TaskState, *, reason: str = "") -> None:
    """The node has ended; what follows is done by `follow`."""
    limits.clear(book, place, row)
    book.move(place, row, state)
    row.finished_ms, row.reason = book.now_ms, reason
    if state is TaskState.DEAD:
        book.tr.set(DEAD.pack(place), b"")
    book.ended.append(place)


def fail(
    book: UnitOfWork, place: NodeKey, row: NodeRecord, failure: Failure, *, state: TaskState = TaskState.FAILED
) -> None:
    """The node has ended without a value, for this reason."""
    write(book, place, FAILURE, dumps(failure.as_json()))
    book.effects.failures[place] = failure
    end(book, place, row, state, reason=failure.reason)


def follow(book: UnitOfWork, *, most: int | None = None) -> None:
    """Does what follows from the nodes that ended, as far as this transaction may; the rest is left in the store.

    With `most` 0 all of it is left.
    """
    left, done = MOST_STEPS if most is None else most, 0
    while book.ended or book.unfit:
        if book.unfit:
            _give_up(book, *book.unfit.popleft())
            continue
        if not done % AHEAD and len(book.ended) > 1 and left > 0:
            book.expect_ends(islice(book.ended, AHEAD))
        done += 1
        place = book.ended.popleft()
        if left <= 0 or book.is_full:
            leave(book, place, RELEASE, "")
            continue
        left -= release(book, place, "", left)


def _give_up(book: UnitOfWork, place: NodeKey, failure: Failure) -> None:
    """Nobody can be given the node: what it would run with is damaged."""
    row = book.node(place)
    if row is not None and not row.state.terminal:
        call_off(book, place, row)
        fail(book, place, row, failure)


def leave(book: UnitOfWork, place: NodeKey, kind: str, cursor: str) -> None:
    """Leaves the rest of a piece of work to later transactions."""
    run = book.run(place.workflow)
    assert run is not None
    key = TODO.pack((book.shard, place.workflow, place.node, kind))
    run.todo += book.tr.get(key) is None  # a walk that is begun again while it is left over is one piece of work
    book.tr.set(key, cursor.encode())
    book.effects.unfinished = True


def drop(book: UnitOfWork, place: NodeKey, kind: str) -> bool:
    """Nothing is left of a piece of work any more; whether there was."""
    run = book.run(place.workflow)
    key = TODO.pack((book.shard, place.workflow, place.node, kind))
    if run is None or not run.todo or book.tr.get(key) is None:
        return False
    book.tr.clear(key)
    run.todo -= 1
    return True


# -- dependents ---------------------------------------------------------------------------------------------


def begin(book: UnitOfWork, workflow: str) -> None:
    """The workflow was accepted: its roots are released."""
    book.ended.append(NodeKey(workflow, ROOT))


def release(book: UnitOfWork, place: NodeKey, after: str, most: int) -> int:
    """Tells the dependents behind `after` that the node ended; how many."""
    if "[" in place.node:
        _element_ended(book, place)
        return 1
    if _is_held(book, place.workflow):
        leave(book, place, RELEASE, after)
        return 1
    edges = book.dependents(place, after, most + 1)
    if not edges and not after:
        _note_last(book, place)
    dependents = [(NodeKey(place.workflow, EDGES.unpack(key)[2]), _POLICIES[policy]) for key, policy in edges[:most]]
    told = 0
    for dependent, policy in dependents:
        if not told % AHEAD:
            book.expect_all(of for of, _ in dependents[told : told + AHEAD])
        if told and book.is_full:  # each may record an input of a MiB
            break
        _tell(book, dependent, place, policy)
        told += 1
    if len(edges) > told:
        leave(book, place, RELEASE, dependents[told - 1][0].node)
    return max(1, told)


def _is_held(book: UnitOfWork, workflow: str) -> bool:
    """Whether nobody is told of ends, since others are being taken back (`again.py`)."""
    run = book.run(workflow)
    if run is None or not run.again or run.canceling:
        return False
    return TODO.pack((book.shard, workflow, ROOT, AGAIN)) not in book.caches.set_aside


def _note_last(book: UnitOfWork, place: NodeKey) -> None:
    run, row = book.run(place.workflow), book.node(place)
    if run is not None and row is not None:
        run.lasts[row.state.value] = run.lasts.get(row.state.value, 0) + 1


def _tell(book: UnitOfWork, place: NodeKey, before: NodeKey, policy: OnFailure) -> None:
    row = book.node(place)
    if row is None or row.state is not TaskState.BLOCKED:
        return
    decision: TaskState | None = TaskState.READY
    if before.node != ROOT:
        ended = book.node(before)
        assert ended is not None
        row.tally = tally = row.tally.with_end(policy, ended.state)
        decision = tally.decision
    if decision is TaskState.READY:
        may_run(book, place, row)
    elif decision is not None:
        end(book, place, row, decision, reason=BY_OTHERS)


# -- what may run -------------------------------------------------------------------------------------------


def may_run(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """The node's predecessors let it: it runs, asks a person, becomes many, or is skipped by its condition."""
    if is_over(book.run(place.workflow)):
        end(book, place, row, TaskState.CANCELED, reason="canceled")
        return
    node = book.definition(place)
    if not has_expressions(node):
        _begin(book, place, row, NO_EXPRESSIONS)
        return
    account = Account(MOST_STEPS_HERE)
    try:
        rows = book.seen(before(node, place.workflow))
        scope = scope_of(book.tr.snapshot, place, node, rows, account)
        inputs = inputs_of(node, scope, account, has_elements=has_elements(book, place))
    except (InputError, DamagedValue) as error:
        if account.overdrawn:
            evaluate_later(book, place)
        else:
            fail(book, place, row, failure_of(error))
    else:
        _begin(book, place, row, inputs)
    book.steps += account.spent


def evaluate_later(book: UnitOfWork, place: NodeKey, cursor: str = "", most: int = 1) -> int:
    """The node's expressions are evaluated outside of transactions: they take longer than the others are to wait."""
    token = cursor or f"{book.now_ms} {book.chance}"
    leave(book, place, EVALUATE, token)
    book.effects.evaluations.append((place, token))
    return most


def evaluated(book: UnitOfWork, place: NodeKey, token: str, told: Inputs | Failure) -> None:
    """Takes what the node's expressions say, unless it was left to be evaluated anew meanwhile, or waits again."""
    if book.tr.get(evaluation_key(book.shard, place)) != token.encode():
        return
    drop(book, place, EVALUATE)
    row = book.node(place)
    if row is None or row.state is not TaskState.BLOCKED or row.tally.decision is not TaskState.READY:
        return
    if is_over(book.run(place.workflow)):
        end(book, place, row, TaskState.CANCELED, reason="canceled")
    elif isinstance(told, Failure):
        fail(book, place, row, told)
    else:
        _begin(book, place, row, told)


def evaluation_key(shard: int, place: NodeKey) -> bytes:
    """Of what is left over of the node while its expressions are evaluated."""
    return TODO.pack((shard, place.workflow, place.node, EVALUATE))


def _begin(book: UnitOfWork, place: NodeKey, row: NodeRecord, inputs: Inputs) -> None:
    if not inputs.holds:
        end(book, place, row, TaskState.SKIPPED, reason="condition")
        return
    try:
        _begin_work(book, place, row, inputs.bodies)
    except (InputError, DamagedValue) as error:
        fail(book, place, row, failure_of(error))


def _begin_work(book: UnitOfWork, place: NodeKey, row: NodeRecord, bodies: Sequence[bytes] | None) -> None:
    match book.definition(place).work:
        case Call():
            if bodies is not None:
                write(book, place, INPUT, bodies[0])
                row.own_input = True
            claim.offer(book, place, row)
        case Each():
            if not has_elements(book, place) and bodies is not None:
                if bodies:
                    write(book, place, INPUT, list_of(bodies))
                expand(book, place, row, len(bodies))
            else:  # they keep their inputs, though the list may be another one by now
                expand(book, place, row, len(value_of(book.tr, place, INPUT)))
        case Approval() as approval:
            approvals.ask(book, place, row, approval)


# -- maps ---------------------------------------------------------------------------------------------------


def has_elements(book: UnitOfWork, place: NodeKey) -> bool:
    """Whether any of the map's elements was made. They are made in order."""
    return book.node(element_of(place, 0)) is not None


def expand(book: UnitOfWork, place: NodeKey, row: NodeRecord, count: int) -> None:
    """The map's elements are made from its recorded input by later transactions; those that there are run again."""
    row.tally = Tally(count, count)
    row.ready_ms = book.now_ms
    book.move(place, row, TaskState.WORKING)
    if count:
        leave(book, place, EXPAND, "0")
    else:
        _end_map(book, place, row)


def continue_expansion(book: UnitOfWork, place: NodeKey, cursor: str, most: int) -> int:
    """Makes the map's elements from the cursor on; how many."""
    first = number = int(cursor)
    row = book.node(place)
    if row is None or row.state is not TaskState.WORKING:
        return 1
    try:
        bodies = value_of(book.tr, place, INPUT)
    except DamagedValue as error:
        fail(book, place, row, failure_of(error))
        return 1
    may_exist = True
    while number < min(first + most, len(bodies)):
        if number > first and book.is_full:
            break
        element = element_of(place, number)
        child = book.node(element) if may_exist else None
        may_exist = child is not None  # behind one that was not made is none
        if child is None:
            child = NodeRecord(TaskState.BLOCKED, own_input=True)
            book.add_node(element, child)
            write(book, element, INPUT, dumps(bodies[number]), first=True)
            claim.offer(book, element, child)
        elif child.state is TaskState.COMPLETED:
            row.tally = row.tally.with_end(OnFailure.FAIL, child.state)
        else:
            begin_anew(book, element, child)
            claim.offer(book, element, child)
        number += 1
    if number < len(bodies):
        leave(book, place, EXPAND, str(number))
    elif not row.tally.open:
        _end_map(book, place, row)
    return max(1, number - first)


def element_of(place: NodeKey, number: int) -> NodeKey:
    """The map's element."""
    return NodeKey(place.workflow, f"{place.node}[{number}]")


def _element_ended(book: UnitOfWork, element: NodeKey) -> None:
    place = NodeKey(element.workflow, element.node.partition("[")[0])
    row, ended = book.node(place), book.node(element)
    if row is None or ended is None or row.state is not TaskState.WORKING:
        return
    row.tally = row.tally.with_end(OnFailure.FAIL, ended.state)
    if not row.tally.open:
        _end_map(book, place, row)


def _end_map(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """All of its elements have ended."""
    tally = row.tally
    if tally.worst is not None:
        end(book, place, row, tally.worst, reason="element")
        return
    try:
        places = [values.ValueKey(*element_of(place, number), RESULT) for number in range(tally.met)]
        results = (body or b"null" for body in values.read_all(book.tr.snapshot, places))
        write(book, place, RESULT, list_of(gathered(results)))
    except DamagedValue as error:
        fail(book, place, row, failure_of(error))
        return
    except ValueBeyondBound:
        message = f"The list of {tally.met} values has more than the {LARGEST_BYTES} bytes that are kept"
        fail(book, place, row, Failure("result_too_large", "TooLarge", message, fix="return references, not values"))
        return
    end(book, place, row, TaskState.COMPLETED)


# -- called off ----------------------------------------------------------------------------------------------


def cancel_node(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """The node ends canceled, whatever it was about; an agent that may run it is told."""
    call_off(book, place, row)
    end(book, place, row, TaskState.CANCELED, reason="canceled")


def call_off(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """Withdraws the node; an agent that may run it is told."""
    if row.state in (TaskState.PUBLISHED, TaskState.WORKING) and row.publication:
        book.effects.cancels.append((place, row.publication))
        book.advance_fence(row)  # what its agent may still tell is late
    withdraw(book, place, row)


def withdraw(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """Takes the node out of whatever it waits in, or was published to; what an agent tells of it is late then."""
    match row.state:
        case TaskState.READY:
            claim.leave_backlog(book, place, row)
        case TaskState.PUBLISHED | TaskState.WORKING if row.publication:
            book.tr.clear(FLIGHTS.pack((book.shard, place.workflow, place.node)))
        case TaskState.AWAITING_APPROVAL:
            approvals.close(book, place, row)
        case TaskState.RETRY_WAIT:
            timers.cancel(book.tr, place.workflow, place.node, claim.RETRY_TIMER)
        case _:
            pass


def is_over(run: RunRecord | None) -> bool:
    """Whether nothing new happens in it."""
    return run is None or run.state.terminal or run.canceling
