"""The idempotency keys of workflows: two submissions with the same key mean one workflow, until the key expires."""

from __future__ import annotations

from dispatcher.ledger import versions
from dispatcher.ledger.errors import KeyReused, UnfitKey
from dispatcher.ledger.keyspace import KEY_EXPIRIES, KEYS
from dispatcher.store.transaction import Reads, Transaction

KEY_RETENTION_MS = 7 * 24 * 3_600_000
"""The time for which an idempotency key is kept, in milliseconds: a week."""
LONGEST_IDEMPOTENCY_KEY_BYTES = 1_000


def claim(
    tr: Transaction, key: str, workflow: str, *, now_ms: int, keep_ms: int = KEY_RETENTION_MS, fingerprint: str = ""
) -> str:
    """Give a workflow the idempotency key if it is free or expired, and return the id of the workflow that has it now.

    The caller accepts its workflow in the same transaction, and only when the answer is the workflow's own id. The
    fingerprint is that of the request that the key came with, for `known`.

    Raises:
        UnfitKey: when the key is empty or too long.
    """
    found = known(tr, key, "", now_ms=now_ms)
    if found is not None:
        return found
    _forget(tr, key)
    _write(tr, key, workflow, now_ms + keep_ms, fingerprint)
    return workflow


def known(tr: Reads, key: str, fingerprint: str, *, now_ms: int) -> str | None:
    """Return the id of the workflow that has the unexpired key, or None; raise KeyReused if the fingerprints differ.

    Requests are compared when both had a fingerprint.

    Raises:
        UnfitKey: when the key is empty or too long.
        KeyReused: when the key came with another request before.
    """
    value = tr.get(_key(key))
    if value is None:
        return None
    workflow, expires_ms, first = _unpack(value)
    if expires_ms <= now_ms:
        return None
    if fingerprint and first and fingerprint != first:
        fix = "send the first request again to get what it made, or choose another key, such as a new UUID"
        raise KeyReused("This Idempotency-Key came with another request before", fix=fix)
    return workflow


def keep(tr: Transaction, key: str, workflow: str, *, until_ms: int) -> bool:
    """Extend a workflow's idempotency key to expire at `until_ms` or later; False when the workflow lost the key.

    Raises:
        UnfitKey: when the key is empty or too long.
    """
    value = tr.get(_key(key))
    if value is None:
        return False
    held_by, expires_ms, fingerprint = _unpack(value)
    if held_by == workflow and expires_ms < until_ms:
        _forget(tr, key)
        _write(tr, key, workflow, until_ms, fingerprint)
    return held_by == workflow


def holder(tr: Reads, key: str) -> str | None:
    """Return the id of the workflow that has the idempotency key, expired or not; None when there is none.

    Raises:
        UnfitKey: when the key is empty or too long.
    """
    value = tr.get(_key(key))
    return None if value is None else _unpack(value)[0]


def forget(tr: Transaction, key: str, workflow: str) -> None:
    """Free an idempotency key if the given workflow has it.

    Raises:
        UnfitKey: when the key is empty or too long.
    """
    if holder(tr, key) == workflow:
        _forget(tr, key)


def sweep(tr: Transaction, *, now_ms: int, limit: int = 1_000) -> int:
    """Remove at most `limit` expired idempotency keys from the store, and return how many were removed.

    Call again until the number is below the limit.
    """
    begin, end = KEY_EXPIRIES.range()[0], KEY_EXPIRIES.pack((now_ms + 1,))
    expired = tr.snapshot.get_range(begin, end, limit=limit)
    for expiry, _ in expired:
        _forget(tr, KEY_EXPIRIES.unpack(expiry)[1])
    return len(expired)


def _forget(tr: Transaction, key: str) -> None:
    value = tr.get(_key(key))
    if value is not None:
        tr.clear(_key(key))
        tr.clear(KEY_EXPIRIES.pack((_unpack(value)[1], key)))


def _write(tr: Transaction, key: str, workflow: str, expires_ms: int, fingerprint: str) -> None:
    tr.set(_key(key), versions.KEY.pack((workflow, expires_ms, fingerprint)))
    tr.set(KEY_EXPIRIES.pack((expires_ms, key)), b"")


def _unpack(row: bytes) -> tuple[str, int, str]:
    """Return the workflow that a key's row names, when the key expires, and the fingerprint, empty for none."""
    workflow, expires_ms, fingerprint = versions.KEY.unpack(row)
    return str(workflow), int(expires_ms), str(fingerprint)


def _key(key: str) -> bytes:
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can carry
        raise UnfitKey("An idempotency key must be valid Unicode") from error
    if not 0 < size_bytes <= LONGEST_IDEMPOTENCY_KEY_BYTES:
        raise UnfitKey(
            "An idempotency key must have another length", size_bytes=size_bytes, most=LONGEST_IDEMPOTENCY_KEY_BYTES
        )
    return KEYS.pack((key,))
