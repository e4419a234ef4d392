"""The audit of the ledger, which checks that its rows, counts and indexes agree with each other.

The audit reads every row and trusts none: a row's statement about another row is looked up there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from coditect.workflow.definition import defined_name
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import (
    APPROVALS,
    COMPENSATE,
    CONTINUATIONS,
    DEAD,
    DUE,
    EDGES,
    ENDED,
    KEYS,
    LIVE,
    PUBLISHED,
    RUNS,
    STATUSES,
    TIMERS,
    WORKFLOWS,
)
from dispatcher.ledger.outbox import Numbers
from dispatcher.ledger.rows import NodeRecord, RunRecord, WorkflowRecord
from dispatcher.store.keys import Space
from dispatcher.store.transaction import Reads

Name = tuple[str, str]
"""The name of a node in the ledger: the workflow's id and the node's name."""


@dataclass(slots=True)
class Ledger:
    """The workflows as read by one audit: their idempotency keys, shards, run and node records, by workflow id."""

    keys: dict[str, str] = field(default_factory=dict)
    """The idempotency key of each workflow, by the workflow's id."""
    shards: dict[str, int] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    nodes: dict[str, dict[str, NodeRecord]] = field(default_factory=lambda: defaultdict(dict))


def read_ledger(tr: Reads) -> Ledger:
    """Read every accepted workflow with its nodes from the ledger."""
    found = Ledger()
    for key, row in tr.get_range(*RUNS.range()):
        found.runs[RUNS.unpack(key)[0]] = RunRecord.unpack(row)
    for key, row in tr.get_range(*WORKFLOWS.range()):
        workflow = WORKFLOWS.unpack(key)[0]
        if workflow in found.runs:
            head = WorkflowRecord.unpack(row)
            found.keys[workflow], found.shards[workflow] = head.key, head.shard
    for key, row in tr.get_range(*STATUSES.range()):
        workflow, node = STATUSES.unpack(key)
        if workflow in found.runs:
            found.nodes[workflow][node] = NodeRecord.unpack(row)
    return found


def audit(tr: Reads, ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Yield each contradiction in the ledger, as a pair: the workflow or node, and the error.

    Workflows, nodes, timers, idempotency keys, indexes and publication numbers are compared.
    """
    yield from _runs(tr, ledger)
    yield from _indexes(tr, ledger)
    yield from _timers(tr, ledger)
    yield from _numbers(tr, ledger)
    for key, row in tr.get_range(*KEYS.range()):
        workflow = str(versions.KEY.unpack(row)[0])
        if ledger.keys.get(workflow) != KEYS.unpack(key)[0]:
            yield workflow, "a key means it, and it does not have that key"


def _runs(tr: Reads, ledger: Ledger) -> Iterator[tuple[str, str]]:
    left = Counter(CONTINUATIONS.unpack(key)[1] for key, _ in tr.get_range(*CONTINUATIONS.range()))
    inner = {EDGES.unpack(key)[:2] for key, _ in tr.get_range(*EDGES.range())}
    listed = Counter(COMPENSATE.unpack(key)[0] for key, _ in tr.get_range(*COMPENSATE.range()))
    live = {LIVE.unpack(key)[1] for key, _ in tr.get_range(*LIVE.range())}
    ended = {ENDED.unpack(key)[2] for key, _ in tr.get_range(*ENDED.range())}
    for workflow, run in ledger.runs.items():
        nodes = ledger.nodes[workflow]
        states = Counter(row.state.value for row in nodes.values())
        lasts = Counter(
            row.state.value
            for name, row in nodes.items()
            if name == defined_name(name) and (workflow, name) not in inner
        )
        open_ = sum(not row.state.terminal for row in nodes.values())
        wrong = {
            "its counts are not those of its nodes": Counter(run.counts) != states,
            "it does not say how many of its nodes are open": run.open != open_,
            "it does not say how much is left to do": run.todo != left[workflow],
            "it has ended and nodes of it have not": run.state.terminal and open_ > 0,
            "it does not say how many of its nodes are to be compensated": run.to_compensate != listed[workflow],
            "it is not listed as it is": (workflow in live, workflow in ended)
            != (not run.state.terminal, run.state.terminal),
            "it has ended otherwise than its last nodes": run.state.terminal and run.state is not _end_of(run, lasts),
        }
        yield from ((workflow, what) for what, is_so in wrong.items() if is_so)


def _end_of(run: RunRecord, lasts: Counter[str]) -> WorkflowState:
    """Return the final state that a workflow should have by its compensation, or else its cancel or last nodes."""
    if run.ended is not None:
        return WorkflowState.COMPENSATION_FAILED if run.to_compensate else WorkflowState.COMPENSATED
    if run.canceling:
        return WorkflowState.CANCELED
    if lasts["failed"] or lasts["dead"]:
        return WorkflowState.FAILED
    if lasts["rejected"]:
        return WorkflowState.REJECTED
    return WorkflowState.CANCELED if lasts["canceled"] else WorkflowState.COMPLETED


def _indexes(tr: Reads, ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Yield each node that an index of the ledger lists wrongly or does not list, with the error."""
    nodes = {(workflow, name): row for workflow, rows in ledger.nodes.items() for name, row in rows.items()}
    for what, listed, state in (
        ("dead", _places(tr, DEAD, 0), TaskState.DEAD),
        ("asked about", _places(tr, APPROVALS, 1), TaskState.AWAITING_APPROVAL),
    ):
        there = _in(nodes, state)
        yield from ((":".join(place), f"it is {what} and not listed") for place in sorted(there - listed))
        yield from ((":".join(place), f"it is listed as {what} and is not") for place in sorted(listed - there))


def _in(nodes: dict[Name, NodeRecord], state: TaskState) -> set[Name]:
    return {place for place, row in nodes.items() if row.state is state}


def _places(tr: Reads, space: Space, at: int) -> set[Name]:
    """Return the workflow id and name of each node that an index lists; `at` is the position of the id in a key."""
    found = [space.unpack(key) for key, _ in tr.get_range(*space.range())]
    return {(str(key[at]), str(key[at + 1])) for key in found}


def _timers(tr: Reads, ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Yield each timer that disagrees with the index of due times, and each timer of an ended node, with the error."""
    set_ = {(*TIMERS.unpack(key), versions.TIMER.unpack(row)[1]) for key, row in tr.get_range(*TIMERS.range())}
    due = Counter((*key[2:], key[1]) for key in (DUE.unpack(key) for key, _ in tr.get_range(*DUE.range())))
    for workflow, node, kind, _ in sorted(set_ ^ due.keys()):
        yield f"{workflow}:{node}", f"its timer {kind} and when that is due do not agree"
    for workflow, node, kind, _ in sorted(set_):
        row = ledger.nodes[workflow].get(node)
        if row is not None and row.state.terminal:
            yield f"{workflow}:{node}", f"it has ended, and its timer {kind} stands"


def _numbers(tr: Reads, ledger: Ledger) -> Iterator[tuple[str, str]]:
    given = {
        PUBLISHED.unpack(key)[0]: Numbers(*versions.PUBLISHED.unpack(row))
        for key, row in tr.get_range(*PUBLISHED.range())
    }
    for shard, numbers in given.items():
        if numbers.confirmed > numbers.last:
            yield f"shard-{shard}", "more publications count as confirmed than there are"
    for workflow, shard in ledger.shards.items():
        last = given.get(shard, Numbers()).last
        yield from (
            (f"{workflow}:{node}", "it was published under a number that was never given")
            for node, row in ledger.nodes[workflow].items()
            if row.publication > last
        )
