"""The ledger's answers to clients' requests, kept so that a repeated or late request changes nothing twice.

An answer is written in the transaction that carried out the request. A request is repeated within seconds, or after an
outage; after a day no client repeats it.

A *ticket* is the id that a client gives to something it gets for a while, such as a lock. Once the ticket has ended,
its end is the answer to every request that would begin it again: the broker may deliver such a request twice, or after
the request that ended the ticket. A request expires in the broker when its sender stops waiting, so the end of a ticket
is kept for minutes only. Tickets of different kinds have different names.
"""

from __future__ import annotations

from typing import Any

from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import ANSWER_EXPIRIES, REQUEST_ANSWERS
from dispatcher.store.transaction import Reads, Transaction

ANSWER_RETENTION_MS = 24 * 3_600_000
"""The time for which the ledger keeps the answer to a client's request: a day, in milliseconds."""
ENDED_TICKET_MS = 600_000
"""The time for which the ledger keeps the end of a ticket, far longer than a request about it can be under way."""


def read(tr: Reads, shard: int, identity: str) -> bytes | None:
    """Return the recorded answer to a client's request; None when the request is new or its answer was removed."""
    return tr.get(REQUEST_ANSWERS.pack((shard, identity)))


def put(
    tr: Transaction, shard: int, identity: str, answer: bytes, *, now_ms: int, keep_ms: int = ANSWER_RETENTION_MS
) -> None:
    """Record the answer to a client's request for `keep_ms`, so that a repetition of the request gets the same."""
    tr.set(REQUEST_ANSWERS.pack((shard, identity)), answer)
    tr.set(ANSWER_EXPIRIES.pack((now_ms + keep_ms, shard, identity)), b"")


def ticket_key(shard: int, ticket: str) -> bytes:
    """Return the key of the row that keeps the end of a ticket, to read it together with other rows."""
    return REQUEST_ANSWERS.pack((shard, f"ticket {ticket}"))


def ticket_end(row: bytes) -> dict[str, Any]:
    """Return the recorded answer of an ended ticket from its row."""
    return dict(versions.ANSWER.unpack(row)["told"])


def ended(tr: Reads, shard: int, ticket: str) -> dict[str, Any] | None:
    """Return the recorded answer of a ticket that has ended; None for a live or new ticket."""
    row = tr.get(ticket_key(shard, ticket))
    return None if row is None else ticket_end(row)


def end_ticket(tr: Transaction, shard: int, ticket: str, answer: dict[str, Any], *, now_ms: int) -> None:
    """Record that a ticket has ended, with the answer to every later request that would begin it again."""
    packed = versions.ANSWER.pack({"told": answer})
    put(tr, shard, f"ticket {ticket}", packed, now_ms=now_ms, keep_ms=ENDED_TICKET_MS)


def sweep(tr: Transaction, *, now_ms: int, limit: int = 1_000) -> int:
    """Remove at most `limit` answers that are more than a day old; return how many were removed.

    Call again until the number is below the limit.
    """
    begin, end = ANSWER_EXPIRIES.range()[0], ANSWER_EXPIRIES.pack((now_ms + 1,))
    expired = tr.snapshot.get_range(begin, end, limit=limit)
    for key, _ in expired:
        tr.clear(key)
        tr.clear(REQUEST_ANSWERS.pack(ANSWER_EXPIRIES.unpack(key)[1:]))
    return len(expired)
