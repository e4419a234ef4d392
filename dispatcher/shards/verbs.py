"""The one table of the verbs of requests, and the one of a shard's timers, of the ledger and of coordination.

A new kept thing adds its module's tables here; `batch` and the request server use nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from dispatcher.coordination import breakers, locks, schedules, state, triggers
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Asked, Due
from dispatcher.ledger.handlers import requests, timeouts
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.nodes import limits
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork

VERBS: Mapping[str, Query | ShardChange] = MappingProxyType(
    {**requests.VERBS, **breakers.VERBS, **locks.VERBS, **schedules.VERBS, **state.VERBS, **triggers.VERBS}
)
"""The handler of each request verb that needs only the store.

`RequestServer` itself serves the verbs that need more: the dispatcher's memory, the broker, or an agent's answer.
"""
TIMERS: Mapping[str, Callable[[UnitOfWork, Timer], None]] = MappingProxyType({**locks.TIMERS, **schedules.TIMERS})
"""The handler of each kind of timer whose workflow is "": a shard's own, named by the thing in place of a node."""
HELD: Final = limits.TIMERS | locks.TIMERS.keys()
"""The kinds of timers that end what is silent, and so are held back while no sign of life can arrive."""


def ask(unit: UnitOfWork, asked: Asked) -> dict[str, Any]:
    """Carry out a request that changes a shard, as `requests.ask` does.

    Raises:
        InputError: when the request is refused, now or the first time.
        Retryable: when the request can be carried out later.
    """
    change = VERBS[asked.verb]
    assert isinstance(change, ShardChange), "nothing else is a command to a shard"
    return requests.ask(unit, asked, change)


def due(unit: UnitOfWork, command: Due) -> None:
    """Carry out a due timer, of a workflow's node or of the shard itself, if the timer is still set."""
    timer = command.timer
    if timer.workflow:
        timeouts.due(unit, command)
    elif timers.finish(unit.tr, timer) and (act := TIMERS.get(timer.kind)) is not None:
        act(unit, timer)
