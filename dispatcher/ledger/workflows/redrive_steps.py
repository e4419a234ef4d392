"""The steps of a redrive: nodes that ended without a result run again, with the nodes that ended because of them.

Their ends are taken back: such a node waits again, and so does every dependent that had ended only because of it,
without having run; then the dependents of that dependent. When all are found, each node that was informed of any of
these ends counts the ends of its predecessors again, and runs if they permit it. There may be 100,000 of them, so the
work goes on in later transactions, from rows of its own::

    ("again", workflow, _TELL, node)    its dependents behind the cursor are to be examined
    ("again", workflow, COUNT, node)   its edges are to be counted, once no _TELL row is left

Meanwhile nodes run and end, but no end in the workflow is passed on to dependents: those are left over
(`advance.release`), so it is known of every end which dependents were informed. A cancel makes all of it pointless.
"""

from __future__ import annotations

from collections.abc import Sequence

from coditect.workflow.definition import Call, Each, Node, SubWorkflow
from coditect.workflow.states import Tally, TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import AGAIN, CONTINUATIONS, EDGES
from dispatcher.ledger.nodes import advance, children, joins
from dispatcher.ledger.nodes.advance import MAX_DEPENDENTS, ROOT
from dispatcher.ledger.nodes.attempts import BY_OTHERS, begin_anew
from dispatcher.ledger.nodes.inputs import INPUT, has_expressions, value_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import COMPENSATE, UnitOfWork
from dispatcher.ledger.workflows import walks
from dispatcher.store.transaction import KeyValue

FIND = "find"
REDRIVABLE = frozenset({TaskState.FAILED, TaskState.DEAD, TaskState.REJECTED, TaskState.CANCELED})
_TELL, COUNT = 0, 1
_FIRST = b"first"
"""The value in the COUNT row of a node that failed by itself, and may have a recorded input."""
_PAGE = 100


def begin(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Reset an ended node and the nodes that ended only because of it; run it again if its predecessors permit."""
    _hold(unit, node_key.workflow)
    _take_back(unit, node_key, row, first=True)
    unit.tr.clear(AGAIN.pack((node_key.workflow, COUNT, node_key.node)))
    _count(unit, node_key, first=True)
    go_on(unit, NodeKey(node_key.workflow, ROOT), "", MAX_DEPENDENTS)


def begin_all(unit: UnitOfWork, workflow: str) -> None:
    """Reset every node of an ended workflow that by itself failed, died, was rejected or canceled; run these again."""
    _hold(unit, workflow)
    find(unit, NodeKey(workflow, ROOT), "", MAX_DEPENDENTS)


def _hold(unit: UnitOfWork, workflow: str) -> None:
    run = unit.run(workflow)
    assert run is not None
    run.redriving = True


def ended_by_itself(row: NodeRecord) -> bool:
    """Tell whether the node failed, died, or was rejected or canceled, and not because of a predecessor."""
    return row.state in REDRIVABLE and row.reason != BY_OTHERS


def find(unit: UnitOfWork, node_key: NodeKey, after: str, limit: int) -> int:
    """Reset one page of the nodes that ended by themselves without a result; after the last page, go on to run them.

    Those are nodes that failed, died, or were rejected or canceled, and not because of a predecessor.

    Return the number of nodes examined and edges handled.
    """
    if _is_given_up(unit, node_key.workflow):
        return 1

    def reset(behind: NodeKey, row: NodeRecord) -> None:
        if ended_by_itself(row) and not behind.is_derived:  # an element runs with its map
            _take_back(unit, behind, row, first=True)

    seen, is_done = walks.each(unit, node_key, FIND, reset, after=after, limit=limit)
    return seen + go_on(unit, node_key, "", limit - seen) if is_done else seen


def go_on(unit: UnitOfWork, node_key: NodeKey, _: str, limit: int) -> int:
    """Continue a workflow's redrive for at most `most` edges between nodes; return how many edges were handled."""
    if _is_given_up(unit, node_key.workflow):
        return 1
    advance.follow(unit)  # what has ended in this transaction is left over, too
    done = 0
    while page := _page(unit, node_key.workflow):
        for key, stored in page:
            if done >= limit or (done and unit.is_full):
                unit.leave(node_key, advance.AGAIN)
                return done
            _, step, node = AGAIN.unpack(key)
            unit.tr.clear(key)
            if step == _TELL:
                done += _tell(unit, NodeKey(node_key.workflow, node), stored.decode(), limit - done)
            else:
                done += _count(unit, NodeKey(node_key.workflow, node), first=stored == _FIRST)
    run = unit.run(node_key.workflow)
    assert run is not None
    run.redriving = False
    return max(1, done)


def _page(unit: UnitOfWork, workflow: str) -> list[KeyValue]:
    """Return up to 100 rows of a redrive: nodes whose dependents are to be reset, or else nodes that may run again.

    The dependents of the nodes in the former rows are to be reset; the nodes in the latter count their predecessors.
    """
    rows = unit.tr.get_range(*AGAIN.range((workflow, _TELL)), limit=_PAGE)
    return rows or unit.tr.get_range(*AGAIN.range((workflow, COUNT)), limit=_PAGE)


def _is_given_up(unit: UnitOfWork, workflow: str) -> bool:
    """Tell whether the workflow was canceled during its redrive, and drop the redrive's rows if it was."""
    run = unit.run(workflow)
    if run is None or not advance.is_over(run):
        return False
    unit.tr.clear_range(*AGAIN.range((workflow,)))
    run.redriving = False
    return True


def _take_back(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, *, first: bool = False) -> None:
    run = unit.run(node_key.workflow)
    assert run is not None
    has_dependents = bool(unit.tr.snapshot.get_range(*EDGES.range((node_key.workflow, node_key.node)), limit=1))
    untold = advance.drop(unit, node_key, advance.RELEASE)
    if has_dependents:
        unit.tr.set(AGAIN.pack((node_key.workflow, _TELL, node_key.node)), b"")
    elif not untold and not node_key.is_compensation:
        run.lasts[row.state.value] -= 1
    begin_anew(unit, node_key, row)
    row.by_hand |= first
    unit.move(node_key, row, TaskState.BLOCKED)
    _count_later(unit, node_key, first=first)


def _count_later(unit: UnitOfWork, node_key: NodeKey, *, first: bool = False) -> None:
    key = AGAIN.pack((node_key.workflow, COUNT, node_key.node))
    if first or unit.tr.get(key) is None:
        unit.tr.set(key, _FIRST if first else b"")


def _tell(unit: UnitOfWork, node_key: NodeKey, after: str, limit: int) -> int:
    """Reset dependents that ended because of a reset node, and have blocked ones recount; return the number examined.

    At most `most` are examined, whose names follow `after`.
    """
    edges = unit.tr.get_range(*EDGES.behind(node_key, (after,)), limit=max(1, limit) + 1)
    dependents = [NodeKey(node_key.workflow, EDGES.unpack(key)[2]) for key, _ in edges[: max(1, limit)]]
    count = 0
    for dependent in dependents:
        if not count % advance.AHEAD:
            unit.expect_all(dependents[count : count + advance.AHEAD])
        if count and unit.is_full:
            break
        row = unit.node(dependent)
        if row is not None and row.state is TaskState.BLOCKED:
            _count_later(unit, dependent)
        elif row is not None and row.state.terminal and row.reason == BY_OTHERS:
            _take_back(unit, dependent, row)
        count += 1
    if len(edges) > count:
        unit.tr.set(AGAIN.pack((node_key.workflow, _TELL, node_key.node)), dependents[count - 1].node.encode())
    return max(1, count)


def _count(unit: UnitOfWork, node_key: NodeKey, *, first: bool) -> int:
    """Count a blocked node's ended predecessors again; begin or end it if they decide; return how many it has."""
    row, node = unit.node(node_key), unit.definition(node_key)
    if row is None or row.state is not TaskState.BLOCKED:
        return 1
    row.tally = tally_of(unit, node_key, node)
    decision = joins.decision(unit, node_key, row.tally)
    if decision is TaskState.READY:
        if first:
            _run_again(unit, node_key, row, node)
        else:
            advance.may_run(unit, node_key, row)
    elif decision is not None and not row.tally.open:
        advance.end(unit, node_key, row, decision, reason=BY_OTHERS)
    advance.follow(unit)
    return max(1, len(node.after))


def tally_of(unit: UnitOfWork, node_key: NodeKey, node: Node) -> Tally:
    """Return the counts of a node's ended and open predecessors; an end not yet passed on to the node is open."""
    tally = Tally.of(node)
    rows = unit.seen([NodeKey(node_key.workflow, edge.node) for edge in node.after])
    ended = [(edge, row.state) for edge, row in zip(node.after, rows, strict=True) if row and row.state.terminal]
    for (edge, state), was_told in zip(
        ended, _were_told(unit, node_key, [edge.node for edge, _ in ended]), strict=True
    ):
        if was_told:
            tally = tally.with_end(edge.on_failure, state)
    return tally


def _were_told(unit: UnitOfWork, node_key: NodeKey, ended: Sequence[str]) -> list[bool]:
    """Return, for each ended predecessor of a node, whether that end was passed on to the node already."""
    run = unit.run(node_key.workflow)
    if run is None or not run.todo:
        return [True] * len(ended)
    keys = [CONTINUATIONS.pack((unit.shard, node_key.workflow, node, advance.RELEASE)) for node in ended]
    cursors = unit.tr.snapshot.get_many(keys)
    return [cursor is None or cursor.decode() >= node_key.node for cursor in cursors]


def _run_again(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, node: Node) -> None:
    """Run a reset node from its recorded input; evaluate its expressions only when no input is recorded."""
    bodies = value_of(unit.tr, node_key, INPUT) if isinstance(node.work, Each) else None
    if isinstance(bodies, list):
        advance.expand(unit, node_key, row, len(bodies))
    elif node_key.is_compensation and isinstance(node.work, SubWorkflow):
        unit.leave(NodeKey(node_key.workflow, ROOT), COMPENSATE)  # its child goes on to undo: no other one begins
    elif isinstance(node.work, Call | SubWorkflow) and _has_input(unit, node_key, node):
        children.run_again(unit, node_key, row)
    else:
        advance.may_run(unit, node_key, row)


def _has_input(unit: UnitOfWork, node_key: NodeKey, node: Node) -> bool:
    """Tell whether a node needs no evaluation: it has no expressions, or an earlier run recorded its input."""
    return not has_expressions(node) or value_of(unit.tr, node_key, INPUT) is not None
