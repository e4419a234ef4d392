"""The ledger's values of up to 1 MiB in the store, cut into pieces; every read verifies size and SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dispatcher.ledger import versions
from dispatcher.ledger.errors import DamagedValue, ValueBeyondBound
from dispatcher.ledger.keyspace import VALUES
from dispatcher.store.transaction import Reads, Transaction

VALUE_PIECE_BYTES = 90_000
SMALL_BYTES = 60_000
"""The largest value in bytes that is stored in one key, beside its hash."""
VALUES_PAGE = 256
"""The number of values that one read of several values asks for; as many small values have 15 MB at most."""
LARGEST_BYTES = 1024 * 1024
"""The largest value in bytes, as on the wire: a tenth of what one transaction may write."""


@dataclass(frozen=True, slots=True)
class ValueKey:
    """The key of a stored value: its workflow, its node, and its kind, such as input or result."""

    workflow: str
    node: str
    """The node's name; empty for a value of the workflow itself."""
    kind: str
    """The kind of the value: input, result, failure or definition."""

    @property
    def key(self) -> tuple[str, str, str]:
        """The tuple of workflow, node and kind, from which the value's key in the store is packed."""
        return (self.workflow, self.node, self.kind)


def put(tr: Transaction, place: ValueKey, value: bytes, *, first: bool = False) -> None:
    """Write a value of at most 1 MiB under its key, in place of an earlier value, if there is one.

    With `first` the caller promises that the key never had a value, so none is looked for.

    Raises:
        ValueBeyondBound: when the value is larger than `LARGEST_BYTES`.
    """
    if len(value) > LARGEST_BYTES:
        raise ValueBeyondBound(
            "The value is too large for the store; put it elsewhere and pass a reference",
            size_bytes=len(value),
            limit_bytes=LARGEST_BYTES,
        )
    if not first:
        clear(tr, place)
    digest = hashlib.sha256(value).digest()
    if len(value) <= SMALL_BYTES:
        tr.set(VALUES.pack(place.key), versions.VALUE.pack((len(value), digest, value)))
        return
    tr.set(VALUES.pack(place.key), versions.VALUE.pack((len(value), digest)))
    for number, begin in enumerate(range(0, len(value), VALUE_PIECE_BYTES)):
        tr.set(VALUES.pack((*place.key, number)), value[begin : begin + VALUE_PIECE_BYTES])


def get(tr: Reads, place: ValueKey) -> bytes | None:
    """Read the value under a key and verify its hash; return None when there is none.

    Raises:
        DamagedValue: when the value is not what was written.
    """
    return _whole(tr, place, tr.get(VALUES.pack(place.key)))


def beginning(tr: Reads, place: ValueKey, *, max_bytes: int) -> tuple[bytes, int] | None:
    """Return the first bytes of the value under a key, without a check of its hash, and its size; None without one."""
    head = tr.get(VALUES.pack(place.key))
    if head is None:
        return None
    size_bytes, _, *small = versions.VALUE.unpack(head)
    value = small[0] if small else tr.get(VALUES.pack((*place.key, 0))) or b""
    return bytes(value[:max_bytes]), size_bytes


def read_all(tr: Reads, places: Sequence[ValueKey]) -> Iterator[bytes | None]:
    """Yield the values of several keys, in the order of the keys, and None for a key without a value.

    One read brings up to 256 values; each value that is too large for one key takes a further read.

    Raises:
        DamagedValue: at a value that is not what was written.
    """
    for first in range(0, len(places), VALUES_PAGE):
        page = places[first : first + VALUES_PAGE]
        heads = tr.get_many([VALUES.pack(place.key) for place in page])
        for place, head in zip(page, heads, strict=True):
            yield _whole(tr, place, head)


def _whole(tr: Reads, place: ValueKey, head: bytes | None) -> bytes | None:
    if head is None:
        return None
    size_bytes, digest, *small = versions.VALUE.unpack(head)
    value = small[0] if small else b"".join(piece for _, piece in tr.get_range(*VALUES.range(place.key)))
    if len(value) != size_bytes:
        raise _damaged(place, f"{len(value)} bytes instead of {size_bytes}")
    if hashlib.sha256(value).digest() != digest:
        raise _damaged(place, "another hash")
    return bytes(value)


def clear(tr: Transaction, place: ValueKey) -> None:
    """Remove the value under a key, with all of its pieces."""
    key = VALUES.pack(place.key)
    head = tr.get(key)
    if head is None:
        return
    tr.clear(key)
    if versions.VALUE.unpack(head)[0] > SMALL_BYTES:
        tr.clear_range(*VALUES.range(place.key))


def _damaged(place: ValueKey, reason: str) -> DamagedValue:
    return DamagedValue(
        "A stored value is not what was written: restore the store from a backup",
        workflow=place.workflow,
        node=place.node,
        kind=place.kind,
        reason=reason,
    )
