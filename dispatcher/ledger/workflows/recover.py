"""The reading of a shard's state from the ledger by the dispatcher that takes the shard over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coditect.errors import NewerVersion
from coditect.wire.routing import parse_task_key
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.keyspace import CONTINUATIONS, FLIGHTS, READY, STATUSES
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.republish import built
from dispatcher.store.transaction import Reads


@dataclass(frozen=True, slots=True)
class RecoveredShard:
    """The state of a shard that a new owner reads from the ledger: published nodes, ready nodes, timer, other work."""

    rows: Sequence[outbox.Row]
    in_flight: Sequence[Transition]
    """The published nodes that have not ended, in their current state."""
    newer: frozenset[NodeKey]
    """The published nodes whose rows a newer dispatcher wrote, so that this dispatcher cannot read them."""
    backlog: Sequence[str]
    has_todo: bool
    next_due_ms: int | None
    doubtful: int
    """The last publication number before the last rebuild; tasks up to it may be missing in the broker."""


def learn(tr: Reads, shard: int) -> RecoveredShard:
    """Read a shard's published nodes, capabilities with ready nodes, outbox, next timer, and if it has other work."""
    in_flight = []
    newer = set[NodeKey]()
    found = [(FLIGHTS.unpack(key)[1:], routing_key) for key, routing_key in tr.get_range(*FLIGHTS.range((shard,)))]
    rows = tr.get_many([STATUSES.pack(node_key) for node_key, _ in found])
    for ((workflow, node), routing_key), packed in zip(found, rows, strict=True):
        if packed is None:
            continue
        node_key = NodeKey(workflow, node)
        try:
            row = NodeRecord.unpack(packed)
        except NewerVersion:
            newer.add(node_key)
            continue
        capability, level = parse_task_key(routing_key.decode())
        in_flight.append(Transition(node_key, row.state, capability, level.value, row))
    return RecoveredShard(
        outbox.waiting(tr, shard, limit=0),
        in_flight,
        frozenset(newer),
        _backlog(tr, shard),
        bool(tr.get_range(*CONTINUATIONS.range((shard,)), limit=1)),
        timers.next_due_ms(tr, shard),
        built(tr, shard).last,
    )


def _backlog(tr: Reads, shard: int) -> list[str]:
    """Return the capabilities that have ready nodes in the shard's backlog, by one read for each capability."""
    found: list[str] = []
    begin, end = READY.range((shard,))
    while first := tr.get_range(begin, end, limit=1):
        found.append(READY.unpack(first[0][0])[1])
        begin = READY.range((shard, found[-1]))[1]
    return found
