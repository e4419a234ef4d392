"""Again: nodes that ended without a value run again, and what ended because of them waits for them again.

Their ends are taken back: a node whose end is no end any more waits, and so does every dependent that had ended only
because of it, without having run; then those behind that one. When all are found, each node that was told of any of
these ends counts anew how its predecessors ended, and what may run by that runs. There may be 100,000 of them, so it
goes on in later transactions, from rows of its own::

    ("again", workflow, _TELL, node)    its dependents behind the cursor are to be looked at
    ("again", workflow, _COUNT, node)   its edges are to be counted, once nobody is to be looked at any more

Meanwhile nodes run and end, but no end of the workflow is told to dependents: those are left over (`advance.release`),
so it is known of every end who has been told. A cancel makes all of it pointless.
"""

from __future__ import annotations

from collections.abc import Sequence

from coditect.workflow.definition import Call, Each, Node
from coditect.workflow.join import Tally
from coditect.workflow.states import TaskState
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import AGAIN, EDGES, STATUSES, TODO
from dispatcher.ledger.nodes import advance, claim
from dispatcher.ledger.nodes.advance import MOST_STEPS, ROOT
from dispatcher.ledger.nodes.attempts import BY_OTHERS, begin_anew
from dispatcher.ledger.nodes.inputs import INPUT, has_expressions, value_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.store.transaction import KeyValue

FIND = "find"
REDRIVABLE = frozenset({TaskState.FAILED, TaskState.DEAD, TaskState.REJECTED, TaskState.CANCELED})
_TELL, _COUNT = 0, 1
_FIRST = b"first"
"""Of what is to be counted: it ended by itself, so it has been called before."""
_PAGE = 100


def begin(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """The ended node runs at once, if its predecessors let it; what ended because of it is taken back."""
    _hold(book, place.workflow)
    _take_back(book, place, row, first=True)
    book.tr.clear(AGAIN.pack((place.workflow, _COUNT, place.node)))
    _count(book, place, first=True)
    go_on(book, NodeKey(place.workflow, ROOT), "", MOST_STEPS)


def begin_all(book: UnitOfWork, workflow: str) -> None:
    """The same of every node of the workflow, which has ended, that ended without a value by itself."""
    _hold(book, workflow)
    find(book, NodeKey(workflow, ROOT), "", MOST_STEPS)


def _hold(book: UnitOfWork, workflow: str) -> None:
    run = book.run(workflow)
    assert run is not None
    run.again = True


def ended_by_itself(row: NodeRecord) -> bool:
    """Whether the node ended without a value, and not because of another."""
    return row.state in REDRIVABLE and row.reason != BY_OTHERS


def find(book: UnitOfWork, place: NodeKey, after: str, most: int) -> int:
    """Takes back the ends of those behind `after` that ended by themselves; how many it looked at."""
    if _is_given_up(book, place.workflow):
        return 1
    start = STATUSES.pack((place.workflow, after)) + b"\0" if after else STATUSES.range((place.workflow,))[0]
    found = book.tr.get_range(start, STATUSES.range((place.workflow,))[1], limit=most + 1)
    seen = 0
    for key, stored in found[:most]:
        if seen and book.is_full:
            break
        one = NodeKey(place.workflow, STATUSES.unpack(key)[1])
        row = book.met(one, stored)
        if row is not None and ended_by_itself(row) and "[" not in one.node:  # an element runs with its map
            _take_back(book, one, row, first=True)
        seen += 1
    if len(found) > seen:
        advance.leave(book, place, FIND, STATUSES.unpack(found[seen - 1][0])[1])
        return max(1, seen)
    return seen + go_on(book, place, "", most - seen)


def go_on(book: UnitOfWork, place: NodeKey, _: str, most: int) -> int:
    """Takes back the next ends, then counts; how many edges it looked at."""
    if _is_given_up(book, place.workflow):
        return 1
    advance.follow(book)  # what has ended in this transaction is left over, too
    done = 0
    while page := _page(book, place.workflow):
        for key, stored in page:
            if done >= most or (done and book.is_full):
                advance.leave(book, place, advance.AGAIN, "")
                return done
            _, step, node = AGAIN.unpack(key)
            book.tr.clear(key)
            if step == _TELL:
                done += _tell(book, NodeKey(place.workflow, node), stored.decode(), most - done)
            else:
                done += _count(book, NodeKey(place.workflow, node), first=stored == _FIRST)
    run = book.run(place.workflow)
    assert run is not None
    run.again = False
    return max(1, done)


def _page(book: UnitOfWork, workflow: str) -> list[KeyValue]:
    """What comes next; what is to be counted when nobody is to be looked at any more."""
    rows = book.tr.get_range(*AGAIN.range((workflow, _TELL)), limit=_PAGE)
    return rows or book.tr.get_range(*AGAIN.range((workflow, _COUNT)), limit=_PAGE)


def _is_given_up(book: UnitOfWork, workflow: str) -> bool:
    """Whether the workflow was canceled meanwhile: all that waits ends by that."""
    run = book.run(workflow)
    if run is None or not advance.is_over(run):
        return False
    book.tr.clear_range(*AGAIN.range((workflow,)))
    run.again = False
    return True


def _take_back(book: UnitOfWork, place: NodeKey, row: NodeRecord, *, first: bool = False) -> None:
    run = book.run(place.workflow)
    assert run is not None
    has_dependents = bool(book.tr.snapshot.get_range(*EDGES.range((place.workflow, place.node)), limit=1))
    untold = advance.drop(book, place, advance.RELEASE)
    if has_dependents:
        book.tr.set(AGAIN.pack((place.workflow, _TELL, place.node)), b"")
    elif not untold:
        run.lasts[row.state.value] -= 1
    begin_anew(book, place, row)
    book.move(place, row, TaskState.BLOCKED)
    _count_later(book, place, first=first)


def _count_later(book: UnitOfWork, place: NodeKey, *, first: bool = False) -> None:
    key = AGAIN.pack((place.workflow, _COUNT, place.node))
    if first or book.tr.get(key) is None:
        book.tr.set(key, _FIRST if first else b"")


def _tell(book: UnitOfWork, place: NodeKey, after: str, most: int) -> int:
    """The node's dependents behind `after` learn that it has not ended; how many."""
    start, end = EDGES.range((place.workflow, place.node))
    if after:
        start = EDGES.pack((place.workflow, place.node, after)) + b"\0"
    edges = book.tr.get_range(start, end, limit=max(1, most) + 1)
    dependents = [NodeKey(place.workflow, EDGES.unpack(key)[2]) for key, _ in edges[: max(1, most)]]
    told = 0
    for dependent in dependents:
        if not told % advance.AHEAD:
            book.expect_all(dependents[told : told + advance.AHEAD])
        if told and book.is_full:
            break
        row = book.node(dependent)
        if row is not None and row.state is TaskState.BLOCKED:
            _count_later(book, dependent)
        elif row is not None and row.state.terminal and row.reason == BY_OTHERS:
            _take_back(book, dependent, row)
        told += 1
    if len(edges) > told:
        book.tr.set(AGAIN.pack((place.workflow, _TELL, place.node)), dependents[told - 1].node.encode())
    return max(1, told)


def _count(book: UnitOfWork, place: NodeKey, *, first: bool) -> int:
    """The node waits for those of its predecessors that have not ended, or runs; how many they are."""
    row, node = book.node(place), book.definition(place)
    if row is None or row.state is not TaskState.BLOCKED:
        return 1
    row.tally = tally_of(book, place, node)
    decision = row.tally.decision
    if decision is TaskState.READY:
        if first:
            _run_again(book, place, row, node)
        else:
            advance.may_run(book, place, row)
    elif decision is not None and not row.open:
        advance.end(book, place, row, decision, reason=BY_OTHERS)
    advance.follow(book)
    return max(1, len(node.after))


def tally_of(book: UnitOfWork, place: NodeKey, node: Node) -> Tally:
    """The node's edges, by those ends that it has been told of."""
    tally = Tally.of(node)
    rows = book.seen([NodeKey(place.workflow, edge.node) for edge in node.after])
    ended = [(edge, row.state) for edge, row in zip(node.after, rows, strict=True) if row and row.state.terminal]
    for (edge, state), told in zip(ended, _were_told(book, place, [edge.node for edge, _ in ended]), strict=True):
        if told:
            tally = tally.with_end(edge.on_failure, state)
    return tally


def _were_told(book: UnitOfWork, place: NodeKey, ended: Sequence[str]) -> list[bool]:
    """Whether the node was told of the ends of these that it comes after, one by one."""
    run = book.run(place.workflow)
    if run is None or not run.todo:
        return [True] * len(ended)
    keys = [TODO.pack((book.shard, place.workflow, node, advance.RELEASE)) for node in ended]
    cursors = book.tr.snapshot.get_many(keys)
    return [cursor is None or cursor.decode() >= place.node for cursor in cursors]


def _run_again(book: UnitOfWork, place: NodeKey, row: NodeRecord, node: Node) -> None:
    """What ended by itself: its predecessors let it run before, and they have not changed."""
    bodies = value_of(book.tr, place, INPUT) if isinstance(node.work, Each) else None
    if isinstance(bodies, list):
        advance.expand(book, place, row, len(bodies))
    elif isinstance(node.work, Call) and _has_input(book, place, node):
        claim.offer(book, place, row)
    else:
        advance.may_run(book, place, row)


def _has_input(book: UnitOfWork, place: NodeKey, node: Node) -> bool:
    """Whether what it is to be called with is known: it got as far as that before."""
    return not has_expressions(node) or value_of(book.tr, place, INPUT) is not None
