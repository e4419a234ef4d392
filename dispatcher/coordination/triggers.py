"""The triggers: each event that matches one starts a workflow or sends a signal, once, also when dispatchers restart.

A trigger has a durable queue of its own for its events (`dispatcher/requests/triggers.py`). An event is acknowledged
after the transaction that started its workflow, so none is lost and one may come again. The workflow's idempotency key
is made of the trigger and of the event's source and id, which CloudEvents declare to be unique: an event that comes
again finds the workflow that it started. A signal's id is made of the same. A trigger that waits costs nothing but its
row and its queue.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from coditect.errors import InputError, InvalidTask, NotFound
from coditect.model.option import read_options
from coditect.wire.control import Verb
from coditect.workflow import fields
from coditect.workflow.expressions import Account, check_roots, evaluate, holds
from coditect.workflow.starters import Trigger, TriggerOptions
from coditect.workflow.template import fill, template_expressions
from dispatcher.coordination import orders
from dispatcher.coordination import trigger_rows as rows
from dispatcher.coordination.schedules import run_id
from dispatcher.coordination.table import report
from dispatcher.coordination.trigger_rows import TRIGGERS
from dispatcher.ledger import idempotency
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.idempotency import LONGEST_IDEMPOTENCY_KEY_BYTES
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import submit
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import text
from dispatcher.store.transaction import Reads

MOST_TRIGGERS = 1_000
"""The largest number of triggers, each of which has a queue and a consumer."""
MAX_TRIGGER_STEPS = 50_000
"""The most evaluation steps of a trigger's expressions over one event, about 50 ms."""
EVENT: frozenset[str] = frozenset({"event"})
"""The only name that a trigger's expressions see: the event, with type, source, id, subject, time and data."""
WHOLE = {"$from": "event"}
"""The input of a trigger that declares none: the event itself."""
_PATTERN = re.compile(r"(?=.{1,200}\Z)(?:[A-Za-z0-9_-]+|\*|#)(?:\.(?:[A-Za-z0-9_-]+|\*|#))*")
_FIELDS = frozenset({"trigger", "event", "workflow", "input"})
"""What the request to make a trigger has beside the `TriggerOptions`."""


def add(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Make a trigger and keep it in the store.

    Raises:
        InputError: when there is a trigger of the name, or a field is wrong.
        InvalidWorkflow: when the workflow is.
    """
    name = orders.read_name(body, rows.BY)
    options = read_options("A trigger", TriggerOptions, {key: body[key] for key in body.keys() - _FIELDS})
    if TRIGGERS.read(unit.tr, name) is not None:
        fix = "choose another name, or delete it: coditect trigger delete"
        raise InputError("There is a trigger of this name", trigger=name, fix=fix)
    if len(TRIGGERS.every(unit.tr.snapshot)) >= MOST_TRIGGERS:
        raise InputError("There are too many triggers", most=MOST_TRIGGERS, fix="coditect trigger list, then delete")
    trigger, order = _read(unit, name, body, options)
    orders.write(unit.tr, name, rows.BY, order)
    TRIGGERS.write(unit.tr, trigger)
    return report(trigger)


def _read(unit: UnitOfWork, name: str, body: Body, options: Mapping[str, Any]) -> tuple[Trigger, dict[str, Any]]:
    pattern, when, signal = text(body, "event"), options["when"], options["signal"]
    if _PATTERN.fullmatch(pattern) is None:
        fix = "such as repo.pushed, repo.* or repo.#"
        raise InvalidTask("This is no pattern of event types", given=pattern[:80], fix=fix)
    if (signal is None) is (body.get("workflow") is None):
        fix = "a workflow (on the command line a FILE), or signal and to (--signal, --to)"
        raise InvalidTask("A trigger has either a workflow or a signal", trigger=name, fix=fix)
    if (signal is None) is not (options["to"] is None):
        fix = "signal and to (--signal, --to), the expression for the id, such as event.data.order"
        raise InvalidTask("A trigger sends a signal to the workflow whose id is in the event", trigger=name, fix=fix)
    order = {} if signal is not None else orders.read_order(body.get("workflow"), rows.BY)
    template = fields.template(body.get("input", WHOLE))
    for _, expression in template_expressions(template):
        check_roots(expression, EVENT)
    if when is not None:
        check_roots(fields.expression(when), EVENT)
    to = None
    if signal is not None:
        to = fields.expression(options["to"])
        check_roots(to, EVENT)
    trigger = Trigger(
        name,
        pattern,
        when or None,
        order.get("name"),
        None if signal is None else fields.signal(signal),
        to,
        "paused" if options["paused"] else "active",
        created_at=unit.now_ms,
        runs=0,
        failed=0,
        last=None,
        last_run=None,
        reason="",
    )
    return trigger, order | {"input": template}


def steer(unit: UnitOfWork, body: Body, *, state: str) -> dict[str, Any]:
    """Pause or resume a trigger: it misses the events that come while it is paused; workflows that run go on."""
    trigger = replace(_find(unit, body), state=state)
    TRIGGERS.write(unit.tr, trigger)
    return report(trigger)


def remove(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Remove a trigger; the workflows that it started go on."""
    name = _find(unit, body).trigger
    TRIGGERS.remove(unit.tr, name)
    orders.clear(unit.tr, name, rows.BY)
    return {"trigger": name, "removed": True}


def fire(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Start a trigger's workflow once for an event that meets its condition, or return the signal to send.

    A paused trigger does nothing. A repeat returns the same signal, by the same id. An event for which nothing can be
    started is counted, and the trigger says why.

    Raises:
        InputError: when there is no such trigger, or (InvalidTask) the event is none.
    """
    trigger, event = _find(unit, body), body.get("event")
    if not isinstance(event, Mapping):
        raise InvalidTask("An event is an object", trigger=trigger.trigger)
    if trigger.state == "paused":
        return {"reason": "paused"}
    identity = _identity(trigger.trigger, str(event.get("source", "")), str(event.get("id", "")))
    try:
        return _start(unit, trigger, {"event": event}, identity)
    except (InputError, DamagedValue) as error:
        reason = str(error)[:500]
        TRIGGERS.write(unit.tr, replace(trigger, failed=trigger.failed + 1, reason=reason))
        unit.effects.say("trigger.failed", trigger.trigger, event=identity, reason=reason)
        return {"reason": reason}


def _start(unit: UnitOfWork, trigger: Trigger, seen: Mapping[str, Any], identity: str) -> dict[str, Any]:
    account = Account(MAX_TRIGGER_STEPS)
    if trigger.when and not holds(evaluate(trigger.when, seen, account)):
        return {"reason": "condition"}
    order = orders.read(unit.tr, trigger.trigger, rows.BY)
    value = fill(order.pop("input"), lambda expression: evaluate(expression, seen, account))
    if trigger.signal:
        to = evaluate(trigger.to or "", seen, account)
        if not isinstance(to, str) or not 0 < len(to) <= 255:
            raise InvalidTask("The event names no workflow to signal", expression=trigger.to, given=str(to)[:80])
        _count(unit, trigger, to)
        signal_id = hashlib.sha256(identity.encode()).hexdigest()
        return {"signal": {"workflow": to, "signal": trigger.signal, "value": value, "id": signal_id}}
    if (known := idempotency.known(unit.tr, identity, "", now_ms=unit.now_ms)) is not None:
        return {"workflow": known, "new": False}
    workflow = run_id(identity, unit.now_ms, unit.shard, shards.fixed_count(unit.tr.snapshot), occasion="trigger")
    submit.start(unit, order | {"workflow": workflow, "input": value, "key": identity})
    _count(unit, trigger, workflow)
    return {"workflow": workflow, "new": True}


def _count(unit: UnitOfWork, trigger: Trigger, workflow: str) -> None:
    TRIGGERS.write(unit.tr, replace(trigger, runs=trigger.runs + 1, last=unit.now_ms, last_run=workflow, reason=""))


def _identity(name: str, source: str, identity: str) -> str:
    """Return the idempotency key of a trigger and an event, with a hash in place of texts too long or unprintable."""
    key = f"trigger:{name}:{source}:{identity}"
    drawn = key.encode(errors="surrogatepass")
    if len(drawn) <= LONGEST_IDEMPOTENCY_KEY_BYTES and key.isprintable():
        return key
    return f"trigger:{name}:{hashlib.sha256(drawn).hexdigest()}"


def _find(unit: UnitOfWork, body: Body) -> Trigger:
    name = text(body, "trigger")
    trigger = TRIGGERS.read(unit.tr, name)
    if trigger is None:
        raise NotFound("There is no such trigger", trigger=name, fix="coditect trigger list")
    return trigger


def list_triggers(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the triggers, sorted by name."""
    triggers, following = TRIGGERS.page(tr, body)
    return {"triggers": [*map(report, triggers)], "next": following}


def _shard_key(body: Body) -> str:
    return rows.shard_key(text(body, "trigger"))


TRIGGER_VERBS: Mapping[str, Query | ShardChange] = {
    Verb.TRIGGER_ADD: ShardChange(add, _shard_key),
    Verb.TRIGGER_PAUSE: ShardChange(partial(steer, state="paused"), _shard_key),
    Verb.TRIGGER_RESUME: ShardChange(partial(steer, state="active"), _shard_key),
    Verb.TRIGGER_REMOVE: ShardChange(remove, _shard_key),
    Verb.TRIGGER_FIRE: ShardChange(fire, _shard_key, deduplicated=False),  # the event's id says if it came before
    Verb.TRIGGER_LIST: Query(list_triggers),
}
