"""The handler of clients' requests: each is carried out once, and its answer is repeated to a repeated request.

A request is repeated when its answer was lost, or when the dispatcher died before the broker knew of the answer. Its
changes may have been changed back meanwhile, so a second execution would do more than the client asked for; and a
refused request must not be carried out unexpectedly later, when its conditions hold. So the answer is kept with the
changes, by the identity of the request. Only a retryable refusal is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from coditect import errors
from coditect.errors import CoditectError, InputError, InvalidTask
from coditect.wire.control import Verb
from dispatcher.ledger import answers, versions
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control, redrive, submit

VERBS: Mapping[Verb, Callable[[UnitOfWork, Mapping[str, Any]], dict[str, Any]]] = MappingProxyType(
    {
        Verb.START: submit.start,
        Verb.CANCEL: control.cancel,
        Verb.PAUSE: control.pause,
        Verb.RESUME: redrive.resume,
        Verb.REDRIVE: redrive.redrive,
        Verb.ANSWER: control.answer,
    }
)
"""The verbs that change a workflow; those that only read are in `queries.py`."""


def ask(unit: UnitOfWork, asked: Asked) -> dict[str, Any]:
    """Carry out a client's request, or return the recorded answer to it.

    Raises:
        InputError: when the request is refused, now or the first time.
        Retryable: when the request can be carried out later.
    """
    if asked.verb not in VERBS:
        raise InvalidTask("This is nothing that a shard does", verb=asked.verb.value)
    if not asked.identity:
        return VERBS[asked.verb](unit, asked.body)
    known = answers.read(unit.tr, unit.shard, asked.identity)
    if known is not None:
        return _told(known)
    try:
        told = VERBS[asked.verb](unit, asked.body)
    except InputError as error:
        _keep(unit, asked.identity, {"refused": refusal_document(error)})
        raise
    _keep(unit, asked.identity, {"told": told})
    return told


def refusal_document(error: CoditectError) -> dict[str, Any]:
    """Return a refusal as JSON values; the type is the nearest class of the error that clients have, too."""
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
