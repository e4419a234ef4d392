"""What a dispatcher learns from the ledger about a shard that it takes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coditect.wire.routing import parse_task_key
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.keyspace import FLIGHTS, READY, STATUSES, TODO
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.republish import built
from dispatcher.store.transaction import Reads


@dataclass(frozen=True, slots=True)
class RecoveredShard:
    """What a desk learns from the ledger when it opens."""

    rows: Sequence[outbox.Row]
    flights: Sequence[Transition]
    """What is published and has not ended, as it is."""
    backlog: frozenset[str]
    has_todo: bool
    next_due_ms: int | None
    doubtful: int
    """The last publication number before the last rebuild."""


def learn(tr: Reads, shard: int) -> RecoveredShard:
    """What is under way and what is left to do. Costs as much as is under way, not as much as waits."""
    flights = []
    found = [(FLIGHTS.unpack(key)[1:], routing_key) for key, routing_key in tr.get_range(*FLIGHTS.range((shard,)))]
    rows = tr.get_many([STATUSES.pack(place) for place, _ in found])
    for ((workflow, node), routing_key), packed in zip(found, rows, strict=True):
        if packed is not None:
            row = NodeRecord.unpack(packed)
            capability, level = parse_task_key(routing_key.decode())
            flights.append(Transition(NodeKey(workflow, node), row.state, capability, level.value, row))
    return RecoveredShard(
        outbox.waiting(tr, shard, limit=0),
        flights,
        _backlog(tr, shard),
        bool(tr.get_range(*TODO.range((shard,)), limit=1)),
        timers.next_due_ms(tr, shard),
        built(tr, shard).last,
    )


def _backlog(tr: Reads, shard: int) -> frozenset[str]:
    """The capabilities that have ready nodes: a look behind each one's, however many there are."""
    found: list[str] = []
    begin, end = READY.range((shard,))
    while first := tr.get_range(begin, end, limit=1):
        found.append(READY.unpack(first[0][0])[1])
        begin = READY.range((shard, found[-1]))[1]
    return frozenset(found)
