"""Answers: what a request was told, so that the same request again is told the same and nothing is done twice.

The answer is written in the transaction that did what was asked for. Requests come again within seconds, or after an
outage; after a day nobody asks any more.
"""

from __future__ import annotations

from dispatcher.ledger.keyspace import ANSWER_EXPIRIES, ANSWERS
from dispatcher.store.transaction import Reads, Transaction

KEEP_MS = 24 * 3_600_000
"""How long an answer is remembered: a day."""


def read(tr: Reads, shard: int, identity: str) -> bytes | None:
    """What the request was told; None when it is new, or its answer was swept."""
    return tr.get(ANSWERS.pack((shard, identity)))


def put(tr: Transaction, shard: int, identity: str, answer: bytes, *, now_ms: int) -> None:
    """Remembers the answer to a request that was new to this transaction."""
    tr.set(ANSWERS.pack((shard, identity)), answer)
    tr.set(ANSWER_EXPIRIES.pack((now_ms + KEEP_MS, shard, identity)), b"")


def sweep(tr: Transaction, *, now_ms: int, limit: int = 1_000) -> int:
    """Removes answers whose day is over, at most `limit`; how many. Again, until it is less than the limit."""
    begin, end = ANSWER_EXPIRIES.range()[0], ANSWER_EXPIRIES.pack((now_ms + 1,))
    expired = tr.snapshot.get_range(begin, end, limit=limit)
    for key, _ in expired:
        tr.clear(key)
        tr.clear(ANSWERS.pack(ANSWER_EXPIRIES.unpack(key)[1:]))
    return len(expired)
