"""Every key of the control plane. Nothing else makes keys.

Keys and values are FoundationDB's tuples. What stands in parentheses are elements of the key, behind the arrow is the
value. A *place* is (workflow, node, kind), with the node "" for what belongs to the workflow itself. Instants are
milliseconds since the epoch; a *level* is 0 to 2, the urgent first.

::

    ("coditect",)
    ├── "format"      ()                                                  → version of this layout
    ├── "shards"      ()                                                  → how many shards there are; never changes
    │
    │   who works on what (leases.py, shards.py)
    ├── "beat"        (owner)                                             → number that grows while it lives
    ├── "lease"       (*name)                                             → owner or "", epoch, owner before
    │                 ("shard", shard) and ("leader", role) are names
    ├── "marker"      (shard)                                             → marker queue of the broker that it knows
    │
    │   workflows and their nodes (the ledger; reserved)
    ├── "workflow"    (workflow)                                          → shard, state, and what its nodes share
    ├── "live"        (shard, workflow)                                   → nothing; until the workflow is terminal
    ├── "projection"  (shard)                                             → how far RQ has been told
    ├── "upload"      (upload)                                            → workflow, chunks so far; until accepted
    ├── "node"        (workflow, node)                                    → state, attempt, fence, what it waits for
    ├── "attempt"     (workflow, node, attempt)                           → agent, fence, times, outcome
    ├── "ready"       (shard, capability, level, ready_ms, workflow, node) → nothing
    ├── "dead"        (workflow, node)                                    → reason, attempt; until it is redriven
    ├── "value"       (workflow, node, kind)                              → size, SHA-256 (values.py)
    │                 (workflow, node, kind, piece)                       → at most 90,000 bytes of it
    │
    │   what is to be done (timers.py, outbox.py)
    ├── "timer"       (workflow, node, kind)                              → shard, due_ms, fence
    ├── "due"         (shard, due_ms, workflow, node, kind)               → fence
    ├── "outbox"      (shard, publication)                                → workflow, node, fence, message
    ├── "publication" (workflow, node)                                    → shard, fence, publication: the node's last
    ├── "published"   (shard)                                             → last publication number given
    │
    │   who asked (idempotency.py)
    ├── "key"         (idempotency key)                                   → workflow, expires_ms
    └── "key_expiry"  (expires_ms, idempotency key)                       → nothing
"""

from __future__ import annotations

from dispatcher.store.keys import Element, Space

ROOT = Space(("coditect",))

FORMAT = ROOT["format"]
SHARDS = ROOT["shards"]

BEATS = ROOT["beat"]
LEASES = ROOT["lease"]
MARKERS = ROOT["marker"]

WORKFLOWS = ROOT["workflow"]
LIVE = ROOT["live"]
PROJECTIONS = ROOT["projection"]
UPLOADS = ROOT["upload"]
NODES = ROOT["node"]
ATTEMPTS = ROOT["attempt"]
READY = ROOT["ready"]
DEAD = ROOT["dead"]
VALUES = ROOT["value"]

TIMERS = ROOT["timer"]
DUE = ROOT["due"]
OUTBOX = ROOT["outbox"]
PUBLICATIONS = ROOT["publication"]
PUBLISHED = ROOT["published"]

KEYS = ROOT["key"]
KEY_EXPIRIES = ROOT["key_expiry"]

_ROW = Space()


def pack_row(*fields: Element) -> bytes:
    """A value from its fields, as a tuple."""
    return _ROW.pack(fields)


def unpack_row(value: bytes) -> tuple[Element, ...]:
    """The fields of a value."""
    return _ROW.unpack(value)
