"""The ledger's answers to clients' requests, kept for a day, so that a repeated request changes nothing twice.

An answer is written in the transaction that carried out the request. A request is repeated within seconds, or after an
outage; after a day no client repeats it.
"""

from __future__ import annotations

from dispatcher.ledger.keyspace import ANSWER_EXPIRIES, ANSWERS
from dispatcher.store.transaction import Reads, Transaction

KEEP_MS = 24 * 3_600_000
"""The time for which the ledger keeps the answer to a client's request: a day, in milliseconds."""


def read(tr: Reads, shard: int, identity: str) -> bytes | None:
    """Return the recorded answer to a client's request; None when the request is new or its answer was removed."""
    return tr.get(ANSWERS.pack((shard, identity)))


def put(tr: Transaction, shard: int, identity: str, answer: bytes, *, now_ms: int) -> None:
    """Record the answer to a client's request for a day, so that a repetition of the request gets the same answer."""
    tr.set(ANSWERS.pack((shard, identity)), answer)
    tr.set(ANSWER_EXPIRIES.pack((now_ms + KEEP_MS, shard, identity)), b"")


def sweep(tr: Transaction, *, now_ms: int, limit: int = 1_000) -> int:
    """Remove at most `limit` answers that are more than a day old; return how many were removed.

    Call again until the number is below the limit.
    """
    begin, end = ANSWER_EXPIRIES.range()[0], ANSWER_EXPIRIES.pack((now_ms + 1,))
    expired = tr.snapshot.get_range(begin, end, limit=limit)
    for key, _ in expired:
        tr.clear(key)
        tr.clear(ANSWERS.pack(ANSWER_EXPIRIES.unpack(key)[1:]))
    return len(expired)
