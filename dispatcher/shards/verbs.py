"""The lookup of the handler of a request's verb or of a shard's timer, in the packages `ledger` and `coordination`.

The modules of coordination are loaded with their first request or timer: a dispatcher whose fleet uses none of them
starts without them. A new kept thing adds a line to `COORDINATION`, and a new verb a line to its noun's table, such as
`schedules.SCHEDULE_VERBS`; `batch` and the request server use nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from dispatcher.ledger import timers
from dispatcher.ledger.commands import Asked, Due
from dispatcher.ledger.handlers import requests, timeouts
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.nodes import limits
from dispatcher.ledger.timers import LOCK_EXPIRY
from dispatcher.ledger.unit_of_work import UnitOfWork

COORDINATION: Mapping[str, str] = {
    noun: f"dispatcher.coordination.{module}"
    for noun, module in (
        ("approval", "approvals"),
        ("audit", "approvals"),
        ("autonomy", "approvals"),
        ("breaker", "breakers"),
        ("handoff", "handoffs"),
        ("lesson", "state"),
        ("lock", "locks"),
        ("schedule", "schedules"),
        ("state", "state"),
        ("thread", "threads"),
        ("trigger", "triggers"),
    )
}
"""The module of coordination for each noun with which verbs and kinds of timers begin, as `lock` in `lock.acquire`."""
HELD: Final = limits.TIME_LIMIT_TIMERS | {LOCK_EXPIRY}
"""The kinds of timers that end an overdue node or lock, and so are held back while no sign of life can arrive."""


def handling(verb: str) -> Query | ShardChange | None:
    """Return the handler of a request's verb, if the verb needs nothing but the store; None for any other verb.

    `RequestServer` itself serves the verbs that need more: the dispatcher's memory, the broker, or an agent's answer.
    """
    found: Query | ShardChange | None = requests.LEDGER_VERBS.get(verb) or _kept("VERBS", verb)
    return found


def _kept(table: str, name: str) -> Any:
    """Return the handler that package `coordination` has for a verb or timer kind, from the noun's table, or None."""
    noun = name.partition(".")[0]
    module = COORDINATION.get(noun)
    return None if module is None else getattr(import_module(module), f"{noun.upper()}_{table}", {}).get(name)


def ask(unit: UnitOfWork, asked: Asked) -> dict[str, Any]:
    """Carry out a request that changes a shard, with the handler of the request's verb, and return the answer.

    Raises:
        InputError: when the request is refused, now or the first time.
        Retryable: when the request can be carried out later.
    """
    change = handling(asked.verb)
    assert isinstance(change, ShardChange), "nothing else is a command to a shard"
    return requests.ask(unit, asked, change)


def due(unit: UnitOfWork, command: Due) -> None:
    """Carry out a due timer, of a workflow's node or of the shard itself, if the timer is still set."""
    timer = command.timer
    if timer.workflow:
        timeouts.due(unit, command)
    elif timers.finish(unit.tr, timer) and (act := _kept("TIMERS", timer.kind)) is not None:
        act(unit, timer)
