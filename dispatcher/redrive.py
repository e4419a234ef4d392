"""Redrive: a node that ended without a value runs again, and what ended because of it goes on.

The node gets its recorded input, or another one, and a new fence; attempts are counted anew. Its dependents that ended
only because it did, without having run, wait again. What completed stays completed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from coditect.errors import InputError, Retryable
from coditect.model.json import dumps
from coditect.model.workflow.definition import Call, Each, Node, OnFailure
from coditect.model.workflow.progress import Tally
from coditect.model.workflow.states import TaskState, WorkflowState
from dispatcher import steering
from dispatcher.intake import text
from dispatcher.layers.keyspace import EDGES, ENDED, LIVE, STATUSES, TODO
from dispatcher.layers.ledger import advance, claiming
from dispatcher.layers.ledger.attempts import BY_OTHERS, begin_anew
from dispatcher.layers.ledger.book import Book
from dispatcher.layers.ledger.effects import Place
from dispatcher.layers.ledger.rows import NodeRow
from dispatcher.layers.ledger.scope import INPUT, has_expressions, value_of, write

MOST_NODES = 5_000
"""Nodes that one redrive begins anew."""
_AGAIN = (TaskState.FAILED, TaskState.DEAD, TaskState.REJECTED, TaskState.CANCELED)


def redrive(book: Book, body: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one node again that ended without a value. With `dry_run` it only says what would begin anew.

    Raises: InputError; Retryable while what follows from its end is left over.
    """
    place = Place(text(body, "workflow"), text(body, "node"))
    steering.run_of(book, place.workflow)
    row = steering.node_of(book, place)
    _check_ended_by_itself(place, row)
    if "input" in body:
        _check_input(book, place, body["input"])
    begun = _again(book, place.workflow, [place.node])
    _check_done_with(book, place.workflow, begun)
    if _tally(book, place, begun).decision not in (None, TaskState.READY):
        fix = "redrive those first, or resume the workflow"
        raise InputError("What the node comes after ended without a value", node=place.node, fix=fix)
    told = {"workflow": place.workflow, "node": place.node, "again": sorted(begun)}
    if body.get("dry_run"):
        return told | {"dry_run": True}
    if "input" in body:
        write(book, place, INPUT, dumps(body["input"]))
        row.own_input = True
    _begin(book, place.workflow, [place.node], begun)
    return told | {"dry_run": False}


def _check_ended_by_itself(place: Place, row: NodeRow) -> None:
    if "[" in place.node:
        raise InputError("An element runs again with its map", node=place.node, fix="redrive the map itself")
    if row.state not in _AGAIN:
        raise InputError("Only what ended without a value runs again", node=place.node, state=row.state.value)
    if row.reason == BY_OTHERS:
        fix = "redrive the node that failed first: coditect workflow show"
        raise InputError("The node ended because of another", node=place.node, fix=fix)


def _check_input(book: Book, place: Place, given: object) -> None:
    """A map's input is the list of its elements' inputs, and stands once there are any: some may have completed."""
    work = book.definition(place).work
    if not isinstance(work, Each):
        return
    if advance.has_elements(book, place):
        fix = "redrive it without an input, or start the workflow again"
        raise InputError("A map that has elements keeps their inputs", node=place.node, fix=fix)
    if not isinstance(given, list):
        fix = "give a list: the input of each element"
        raise InputError("The input of a map is a list", node=place.node, given=type(given).__name__, fix=fix)
    if len(given) > work.limit:
        raise InputError("The list is longer than the map's limit", node=place.node, count=len(given), most=work.limit)


def resume(book: Book, body: Mapping[str, Any]) -> dict[str, Any]:
    """A paused workflow goes on; one that did not complete runs again from its first failed nodes."""
    workflow = text(body, "workflow")
    run = steering.run_of(book, workflow)
    if not run.state.terminal:
        return steering.resume(book, body)
    if run.state is WorkflowState.COMPLETED:
        raise InputError("The workflow has completed", workflow=workflow)
    first = _first(book, workflow)
    if not first:
        raise InputError("The workflow has no node to begin with", workflow=workflow, state=run.state.value)
    begun = _again(book, workflow, first)
    _begin(book, workflow, first, begun)
    return {"workflow": workflow, "state": run.state.value, "again": sorted(begun)}


def _first(book: Book, workflow: str) -> list[str]:
    """The nodes that ended without a value by themselves."""
    rows = book.tr.get_range(*STATUSES.range((workflow,)), limit=MOST_NODES * 4 + 1)
    if len(rows) > MOST_NODES * 4:
        raise InputError("The workflow is too large to run again as a whole", fix="redrive its failed nodes")
    found = {STATUSES.unpack(key)[1]: NodeRow.unpack(row) for key, row in rows}
    return [name for name, row in found.items() if row.state in _AGAIN and row.reason != BY_OTHERS and "[" not in name]


def _again(book: Book, workflow: str, first: Iterable[str]) -> set[str]:
    """These nodes, and those behind them that ended without having run because one of these did."""
    begun = set(first)
    waiting = deque(begun)
    while waiting:
        name = waiting.popleft()
        for key, _ in book.tr.get_range(*EDGES.range((workflow, name))):
            dependent = EDGES.unpack(key)[2]
            row = book.node(Place(workflow, dependent))
            if row is None or dependent in begun or not row.state.terminal or row.reason != BY_OTHERS:
                continue
            begun.add(dependent)
            waiting.append(dependent)
            if len(begun) > MOST_NODES:
                raise InputError("Too many nodes would begin anew", most=MOST_NODES, fix="start the workflow again")
    return begun


def _check_done_with(book: Book, workflow: str, begun: set[str]) -> None:
    """What is left over of an end would be done to what begins anew: dependents would be told twice.

    Of their own ends, and of those before them, which are counted when they begin anew.
    """
    if not steering.run_of(book, workflow).todo:
        return
    left = book.tr.get_range(*TODO.range((book.shard, workflow)), limit=MOST_NODES)
    found = [TODO.unpack(key)[2:] for key, _ in left]
    before = {edge.node for name in begun for edge in book.definition(Place(workflow, name)).after}
    own = any(kind == advance.CANCEL or _base(node) in begun for node, kind in found)
    if len(left) == MOST_NODES or own or any(kind == advance.RELEASE and node in before for node, kind in found):
        fix = "try again in a moment"
        raise Retryable("What follows from the node's end is not done yet", workflow=workflow, fix=fix)


def _base(node: str) -> str:
    return str(node).partition("[")[0]


def _begin(book: Book, workflow: str, first: Iterable[str], begun: set[str]) -> None:
    run = steering.run_of(book, workflow)
    if run.finished_ms is not None:
        book.tr.clear(ENDED.pack((book.shard, run.finished_ms, workflow)))
        book.tr.set(LIVE.pack((book.shard, workflow)), b"")
    run.finished_ms, run.reason, run.canceling = None, "", False
    if run.state is not WorkflowState.PAUSED:  # what got ready meanwhile waits for the resume
        run.state = WorkflowState.RUNNING
        book.effects.say("workflow.resumed", workflow)
    for name in begun:
        _take_back(book, Place(workflow, name), begun)
    for name in begun:
        _reset(book, Place(workflow, name), begun)
    for name in first:
        place = Place(workflow, name)
        row = steering.node_of(book, place)
        if row.tally.decision is TaskState.READY:
            _run_again(book, place, row)


def _take_back(book: Book, place: Place, begun: set[str]) -> None:
    """Dependents that wait for others, too, were told of this end: they wait for the next one again."""
    for key, policy in book.tr.snapshot.get_range(*EDGES.range((place.workflow, place.node))):
        dependent = Place(place.workflow, EDGES.unpack(key)[2])
        row = book.node(dependent)
        if row is None or row.state is not TaskState.BLOCKED:
            continue
        row.open += 1
        if OnFailure(policy.decode()) is OnFailure.ALLOW:
            row.met -= 1
        else:
            row.worst = _tally(book, dependent, begun).worst


def _reset(book: Book, place: Place, begun: set[str]) -> None:
    row = steering.node_of(book, place)
    run = steering.run_of(book, place.workflow)
    if not book.tr.snapshot.get_range(*EDGES.range((place.workflow, place.node)), limit=1):
        run.lasts[row.state.value] -= 1
    row.tally = _tally(book, place, begun)
    begin_anew(book, place, row)
    book.move(place, row, TaskState.BLOCKED)


def _tally(book: Book, place: Place, begun: set[str]) -> Tally:
    """The node's edges, by those of its predecessors that have ended and do not begin anew."""
    node = book.definition(place)
    tally = Tally.of(node)
    for edge in node.after:
        before = book.node(Place(place.workflow, edge.node))
        if edge.node not in begun and before is not None and before.state.terminal:
            tally = tally.with_end(edge.on_failure, before.state)
    return tally


def _run_again(book: Book, place: Place, row: NodeRow) -> None:
    """The failed node itself: its predecessors let it run before, and they have not changed."""
    node = book.definition(place)
    bodies = value_of(book.tr, place, INPUT) if isinstance(node.work, Each) else None
    if isinstance(bodies, list):
        advance.expand(book, place, row, len(bodies))
    elif isinstance(node.work, Call) and has_input(book, place, node):
        claiming.offer(book, place, row)
    else:
        advance.may_run(book, place, row)


def has_input(book: Book, place: Place, node: Node) -> bool:
    """Whether what it is to be called with is known: it got as far as that before."""
    return not has_expressions(node) or value_of(book.tr, place, INPUT) is not None
