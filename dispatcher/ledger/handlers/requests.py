"""The table of clients' request verbs about workflows, and the handler of requests that change a shard.

A change is carried out once, and its answer is repeated to a repeated request.

A request is repeated when its answer was lost, or when the dispatcher died before the broker knew of the answer. Its
changes may have been changed back meanwhile, so a second execution would do more than the client asked for; and a
refused request must not be carried out unexpectedly later, when its conditions hold. So the answer is kept with the
changes, by the identity of the request. Only a retryable refusal is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from coditect import errors
from coditect.errors import CoditectError, InputError
from coditect.wire.control import Verb
from coditect.workflow import fields
from coditect.workflow.states import WorkflowState
from dispatcher.ledger import answers, versions
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.keyspace import LABELED, RUNS, STATES, WORKFLOWS
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control, queries, redrive, signals, submit
from dispatcher.ledger.workflows.checkpoints import requests as checkpoints
from dispatcher.ledger.workflows.checkpoints import restore
from dispatcher.ledger.workflows.queries import DEFAULT_PAGE, MAX_PAGE, Body, overview
from dispatcher.ledger.workflows.submit import number
from dispatcher.store.keys import Space
from dispatcher.store.transaction import KeyRange, Reads


@dataclass(frozen=True, slots=True)
class Query:
    """A read-only request verb: any dispatcher answers it, from one read transaction."""

    read: Callable[[Reads, Body], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ShardChange:
    """A request verb that changes a shard: the shard's owner applies it, in a batch with other commands."""

    apply: Callable[[UnitOfWork, Body], dict[str, Any]]
    shard_key: Callable[[Body], str] = lambda body: submit.text(body, "workflow")
    """The function that reads the text that decides the shard, such as the workflow id, or raises an InputError."""
    deduplicated: bool | Callable[[Body], bool] = True
    """Whether a repeated request, perhaps only with such a body, gets the recorded answer and no second execution."""
    own: bool = False
    """Whether only the dispatcher itself makes the change: no client or agent may request it."""

    def records_answer(self, body: Body) -> bool:
        """Tell whether the answer to a request is recorded for its repetitions."""
        return self.deduplicated if isinstance(self.deduplicated, bool) else self.deduplicated(body)


def ask(unit: UnitOfWork, asked: Asked, change: ShardChange) -> dict[str, Any]:
    """Carry out a client's request that changes a shard; a request repeated under its id gets the recorded answer.

    Raises:
        InputError: when the request is refused, now or the first time.
        Retryable: when the request can be carried out later.
    """
    if not asked.identity:
        return change.apply(unit, asked.body)
    known = answers.read(unit.tr, unit.shard, asked.identity)
    if known is not None:
        return _read_answer(known)
    try:
        answer = change.apply(unit, asked.body)
    except InputError as error:
        _keep(unit, asked.identity, {"refused": refusal_document(error)})
        raise
    _keep(unit, asked.identity, {"told": answer})
    return answer


def refusal_document(error: CoditectError) -> dict[str, Any]:
    """Return a request's refusal as JSON; its type is the error's class, or its nearest base in `coditect.errors`."""
    known = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
    facts = {name: _plain(fact) for name, fact in error.facts.items()}
    return {"type": known, "sentence": error.sentence, "facts": facts}


def _keep(unit: UnitOfWork, identity: str, answer: dict[str, Any]) -> None:
    answers.put(unit.tr, unit.shard, identity, versions.ANSWER.pack(answer), now_ms=unit.now_ms)


def _read_answer(answer: bytes) -> dict[str, Any]:
    kept = versions.ANSWER.unpack(answer)
    if "refused" not in kept:
        return dict(kept["told"])
    refused = kept["refused"]
    kind = getattr(errors, refused["type"], InputError)
    error: InputError = kind(refused["sentence"])
    error.facts |= refused["facts"]
    raise error


def _plain(fact: object) -> Any:
    if isinstance(fact, list | tuple):
        return [_plain(item) for item in fact]
    return fact if isinstance(fact, str | int | float | bool | None) else str(fact)


# The query that lists workflows page by page, from one index: of a label, of a state, or of all workflows.
#
# ==================  ======================================================  =======================================
# asked for           looks through                                           of which it shows
# ==================  ======================================================  =======================================
# labels              the workflows that have the first of them               those that have the rest, state and name
# a state             the workflows of the state                              those of the name
# neither             all workflows                                           those of the name
# ==================  ======================================================  =======================================
#
# The time narrows each of them, since the ids of workflows begin with it. A page looks through at most `MAX_PAGE`
# workflows, and through no more than it shows where the index alone decides.


def list_workflows(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of workflows, the latest first; a page may have few workflows although more pages follow.

    Raises:
        InputError: when a label is wrong.
    """
    limit, after, name = (
        min(number(body, "limit", DEFAULT_PAGE), MAX_PAGE),
        str(body.get("after") or ""),
        body.get("name"),
    )
    state = WorkflowState(body["state"]) if body.get("state") else None
    labels = fields.labels(body.get("labels") or {})
    space, decides = _index(state, labels)
    row_limit = limit if decides and not name else MAX_PAGE
    begin, end = _between(space, body)
    rows = tr.get_range(begin, min(end, space.pack((after,))) if after else end, limit=row_limit, reverse=True)
    looked = [str(space.unpack(key)[0]) for key, _ in rows]
    runs = tr.get_many([RUNS.pack((workflow,)) for workflow in looked])
    known = [(workflow, RunRecord.unpack(row)) for workflow, row in zip(looked, runs, strict=True) if row is not None]
    wanted = [(workflow, run) for workflow, run in known if state in (None, run.state)]
    heads = tr.get_many([WORKFLOWS.pack((workflow,)) for workflow, _ in wanted])
    page = [
        overview(workflow, head, run)
        for (workflow, run), row in zip(wanted, heads, strict=True)
        if row is not None
        and (head := WorkflowRecord.unpack(row)).name == (name or head.name)
        and labels.items() <= head.labels.items()
    ]
    if len(page) > limit:
        return {"workflows": page[:limit], "next": page[limit - 1]["workflow"]}
    return {"workflows": page, "next": looked[-1] if len(rows) == row_limit else None}


def _index(state: WorkflowState | None, labels: dict[str, str]) -> tuple[Space, bool]:
    """Return the index of workflows to search, and whether all workflows in it have the wanted labels and state."""
    if labels:
        label, value = min(labels.items())
        return LABELED[label][value], len(labels) == 1 and state is None
    return (RUNS if state is None else STATES[state.value]), True


def _between(space: Space, body: Body) -> KeyRange:
    """Return the part of an index with workflow ids (UUIDv7) whose timestamps are from `since` to before `until`."""
    begin, end = space.range()
    if body.get("since") is not None:
        begin = space.pack((str(UUID(int=number(body, "since", 1) << 80)),))
    if body.get("until") is not None:
        end = space.pack((str(UUID(int=number(body, "until", 1) << 80)),))
    return begin, end


LEDGER_VERBS: Mapping[str, Query | ShardChange] = {
    # a start's chunks and key say whether it was done
    Verb.START: ShardChange(submit.start, submit.identity, deduplicated=False),
    Verb.CANCEL: ShardChange(control.cancel),
    Verb.PAUSE: ShardChange(control.pause),
    Verb.RESUME: ShardChange(redrive.resume),
    Verb.REDRIVE: ShardChange(redrive.redrive),
    Verb.ANSWER: ShardChange(control.answer),
    Verb.SIGNAL: ShardChange(signals.signal, deduplicated=False),  # its id says whether it came before
    Verb.CHECKPOINT: ShardChange(checkpoints.make),
    Verb.RESTORE: ShardChange(restore.restore),
    Verb.CHECKPOINTS: Query(checkpoints.listing),
    Verb.RESTORE_PLAN: Query(checkpoints.plan),
    Verb.LIST: Query(list_workflows),
    Verb.NODES: Query(queries.nodes),
    Verb.ATTEMPTS: Query(queries.attempts),
    Verb.NODE_INPUT: Query(queries.node_input),
    Verb.DEAD: Query(queries.dead),
    Verb.APPROVALS: Query(queries.approvals),
}
"""The handler of each request verb about workflows; `shards/verbs.py` has the table of all verbs."""
