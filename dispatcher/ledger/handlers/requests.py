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
from types import MappingProxyType
from typing import Any

from coditect import errors
from coditect.errors import CoditectError, InputError
from coditect.wire.control import Verb
from dispatcher.ledger import answers, versions
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.handlers import listings
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control, queries, redrive, signals, submit
from dispatcher.ledger.workflows.checkpoints import requests as checkpoints
from dispatcher.ledger.workflows.checkpoints import restore
from dispatcher.ledger.workflows.queries import Body
from dispatcher.store.transaction import Reads


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

    def records_answer(self, body: Body) -> bool:
        """Tell whether the answer to a request is recorded for its repetitions."""
        return self.deduplicated if isinstance(self.deduplicated, bool) else self.deduplicated(body)


VERBS: Mapping[str, Query | ShardChange] = MappingProxyType(
    {
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
        Verb.LIST: Query(listings.list_workflows),
        Verb.NODES: Query(queries.nodes),
        Verb.ATTEMPTS: Query(queries.attempts),
        Verb.NODE_INPUT: Query(queries.node_input),
        Verb.DEAD: Query(queries.dead),
        Verb.APPROVALS: Query(queries.approvals),
    }
)
"""The handler of each request verb about workflows; `shards/verbs.py` has the table of all verbs."""


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
        return _told(known)
    try:
        told = change.apply(unit, asked.body)
    except InputError as error:
        _keep(unit, asked.identity, {"refused": refusal_document(error)})
        raise
    _keep(unit, asked.identity, {"told": told})
    return told


def refusal_document(error: CoditectError) -> dict[str, Any]:
    """Return a request's refusal as JSON; its type is the error's class, or its nearest base in `coditect.errors`."""
    known = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
    facts = {name: _plain(fact) for name, fact in error.facts.items()}
    return {"type": known, "sentence": error.sentence, "facts": facts}


def _keep(unit: UnitOfWork, identity: str, answer: dict[str, Any]) -> None:
    answers.put(unit.tr, unit.shard, identity, versions.ANSWER.pack(answer), now_ms=unit.now_ms)


def _told(answer: bytes) -> dict[str, Any]:
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
        return [_plain(one) for one in fact]
    return fact if isinstance(fact, str | int | float | bool | None) else str(fact)
