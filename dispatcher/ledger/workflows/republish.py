"""Anew: what was published is published again, because the broker that had it may not be there any more.

Everything of the shard that is published and has not ended is gone over in pages. When the broker is another, what an
agent had begun is closed as lost, and that is no attempt of the node's: the broker failed, not the node. It runs again,
and what an agent that still runs it tells is late. When the broker is the one that the shard was built on, what was
begun is left alone, and so is what was published so short a time ago that it may run untold: what runs twice then is
only what an agent began and whose start, `UNTOLD_MS` later, was lost or has not been read yet. One outcome is recorded.

A shard keeps the *marker* of the broker that it was last built on, and the last publication number that it had given
then: nothing up to that number is with this broker.
"""

from __future__ import annotations

from dataclasses import dataclass

from coditect.wire.json import dumps, loads
from coditect.workflow.states import TaskState
from dispatcher.ledger import versions
from dispatcher.ledger.book import UnitOfWork
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import FLIGHTS, MARKERS, TODO
from dispatcher.ledger.nodes import claim
from dispatcher.ledger.nodes.attempts import BROKER_LOST, UNDER_WAY, write_attempt
from dispatcher.ledger.rows import NodeRecord
from dispatcher.store.transaction import Reads

REBUILD = "rebuild"
MOST_NODES = 200
"""That one transaction publishes anew."""
UNTOLD_MS = 3_000
"""For so long after its publication a node may run while nobody told: unasked for 1 s, told 100 ms after its start.

The rest is for the way: a start that was lost, or lies in a queue for longer, is not waited for.
"""


@dataclass(frozen=True, slots=True)
class Built:
    """What a shard was last built on."""

    marker: str = ""
    """Name of the queue; empty when it never was."""
    occasion: str = ""
    """What asked for it: the same again asks for nothing."""
    last: int = 0
    """The last publication number that was given before."""
    published: int = 0
    """Nodes that nobody had begun and that were published anew since."""
    working: int = 0
    """The same of those that were begun."""


def built(tr: Reads, shard: int) -> Built:
    """What the shard was last built on."""
    row = tr.get(MARKERS.pack((shard,)))
    return Built() if row is None else Built(*versions.MARKER.unpack(row))


def left_over(tr: Reads, shard: int) -> bytes | None:
    """Where a walk is that is not over."""
    return tr.get(_key(shard))


def begin(book: UnitOfWork, marker: str, occasion: str, *, kept: bool = False) -> int:
    """Records the marker and leaves the walk to later transactions; the last publication number before it.

    A walk that is not over yet goes on with this one: what another broker had is published anew, whoever asks.
    """
    before = built(book.tr, book.shard)
    if (before.marker, before.occasion) == (marker, occasion):
        return before.last
    last = book.last_number()
    book.tr.set(MARKERS.pack((book.shard,)), versions.MARKER.pack((marker, occasion, last)))
    unfinished = left_over(book.tr, book.shard)
    _leave(book, last, kept and (unfinished is None or loads(unfinished)[1]), "", "")
    return last


def _key(shard: int) -> bytes:
    return TODO.pack((shard, "", "", REBUILD))


def _leave(book: UnitOfWork, last: int, kept: bool, workflow: str, node: str) -> None:
    book.tr.set(_key(book.shard), dumps([last, kept, workflow, node]))
    book.effects.unfinished = True


def go_on(book: UnitOfWork, cursor: bytes) -> int:
    """Publishes the next page; how many nodes it looked at."""
    last, kept, workflow, node = loads(cursor)
    begin_key, end_key = FLIGHTS.range((book.shard,))
    if workflow:
        begin_key = FLIGHTS.pack((book.shard, workflow, node)) + b"\0"
    found = book.tr.get_range(begin_key, end_key, limit=MOST_NODES + 1)
    places = [NodeKey(*FLIGHTS.unpack(key)[1:]) for key, _ in found[:MOST_NODES]]
    count = {TaskState.PUBLISHED: 0, TaskState.WORKING: 0}
    looked = 0
    for place in places:
        if looked and book.is_full:
            break
        looked += 1
        row = book.node(place)
        if row is None or row.state not in UNDER_WAY or row.publication > last or (kept and _may_run(book, row)):
            continue
        count[row.state] += 1
        publish(book, place, row)
    _add(book, count[TaskState.PUBLISHED], count[TaskState.WORKING])
    if len(found) > looked:
        _leave(book, last, kept, places[looked - 1].workflow, places[looked - 1].node)
    return looked


def _add(book: UnitOfWork, published: int, working: int) -> None:
    """To what was published anew since the walk began."""
    so_far = built(book.tr, book.shard)
    counts = so_far.published + published, so_far.working + working
    row = versions.MARKER.pack((so_far.marker, so_far.occasion, so_far.last, *counts))
    book.tr.set(MARKERS.pack((book.shard,)), row)


def _may_run(book: UnitOfWork, row: NodeRecord) -> bool:
    """Whether an agent may have begun it."""
    return row.state is TaskState.WORKING or book.now_ms - (row.published_ms or 0) < UNTOLD_MS


def publish(book: UnitOfWork, place: NodeKey, row: NodeRecord) -> None:
    """Publishes a node anew whose publication is gone; no attempt is counted."""
    if row.state is TaskState.WORKING:
        write_attempt(book, place, row, "lost", BROKER_LOST)
    claim.publish(book, place, row)
