"""The reading of a shard's state from the ledger by the dispatcher that takes the shard over.

The nodes' own rows say which of them are ready, and which are published and have not ended: no index lists these, so
that a node's way through its states writes one row a step. Who takes a shard over walks the rows of its live workflows,
in pages of one transaction. Nothing changes between two pages, for only the shard's owner changes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from coditect.errors import NewerVersion
from coditect.wire.routing import parse_task_key
from coditect.workflow.states import TaskState
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.keyspace import CONTINUATIONS, STATUSES
from dispatcher.ledger.rows import NodeRecord, live_rows, may_be_active
from dispatcher.ledger.workflows.republish import built
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads

MAX_LEARNED_ROWS = 20_000
"""The most rows of nodes that one transaction reads to find those that are ready or published."""


@dataclass(frozen=True, slots=True)
class Active:
    """The ready and the published nodes among the nodes of a shard's live workflows."""

    ready: list[Transition] = field(default_factory=list)
    """The ready nodes, the oldest first, those of paused workflows among them."""
    in_flight: list[Transition] = field(default_factory=list)
    """The published nodes that have not ended, in their current state."""
    newer: set[NodeKey] = field(default_factory=set)
    """The nodes whose rows a newer dispatcher wrote, so that this dispatcher cannot read them."""


@dataclass(frozen=True, slots=True)
class RecoveredShard:
    """The state of a shard that a new owner reads from the ledger."""

    active: Active
    numbers: outbox.Numbers
    has_todo: bool
    next_due_ms: int | None
    doubtful: int
    """The last publication number before the last rebuild; tasks up to it may be missing in the broker."""

    @property
    def unsent(self) -> dict[int, NodeKey]:
        """The outbox: the published nodes whose tasks the broker may not have, by their publication numbers."""
        return {
            moved.row.publication: moved.node_key
            for moved in self.active.in_flight
            if moved.state is TaskState.PUBLISHED and moved.row.publication > self.numbers.confirmed
        }


async def nothing() -> None:
    """Do nothing between two pages."""


async def learn(
    database: Database, shard: int, *, between_pages: Callable[[], Awaitable[None]] = nothing
) -> RecoveredShard:
    """Read a shard's ready and published nodes, its publication numbers, its next timer, and if it has other work.

    A large shard takes longer than a lease lasts: `between_pages` may renew it.

    Raises:
        CoditectError: any error of `Database.read`.
    """
    active, after = Active(), NodeKey("", "")
    while True:
        page, last = await database.read(partial(_page, shard=shard, after=after))
        active.ready.extend(page.ready)
        active.in_flight.extend(page.in_flight)
        active.newer.update(page.newer)
        if last is None:
            active.ready.sort(key=lambda moved: moved.row.ready_ms or 0)
            return await database.read(partial(_recovered, shard=shard, active=active))
        after = last
        await between_pages()


def _recovered(tr: Reads, shard: int, active: Active) -> RecoveredShard:
    todo = tr.get_range(*CONTINUATIONS.range((shard,)), limit=1)
    numbers, next_due_ms = outbox.numbers(tr, shard), timers.next_due_ms(tr, shard)
    return RecoveredShard(active, numbers, bool(todo), next_due_ms, built(tr, shard).last)


def _page(tr: Reads, shard: int, after: NodeKey) -> tuple[Active, NodeKey | None]:
    """Return the active nodes of the page behind a node, and the page's last node, None if nothing follows."""
    page, key, count = Active(), b"", 0
    for key, packed in islice(live_rows(tr, shard, after), MAX_LEARNED_ROWS):
        count += 1
        if may_be_active(packed):
            _add(page, NodeKey(*STATUSES.unpack(key)), packed)
    return page, NodeKey(*STATUSES.unpack(key)) if count == MAX_LEARNED_ROWS else None


def _add(page: Active, node_key: NodeKey, packed: bytes) -> None:
    try:
        row = NodeRecord.unpack(packed)
    except NewerVersion:
        page.newer.add(node_key)
        return
    if row.destination is not None and (row.state is TaskState.READY or row.publication):
        capability, level = parse_task_key(row.destination)
        of_state = page.ready if row.state is TaskState.READY else page.in_flight
        of_state.append(Transition(node_key, row.state, capability, level.value, row))
