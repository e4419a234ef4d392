"""Blob references: the small JSON objects that travel in place of values over the inline limit (EIP's Claim Check).

In a message with the header `x-coditect-claim`, an object ``{"$claim": {"sha256": ..., "bytes": ...}}`` stands for a
large value: usually the object is the whole body, but it may be any part of the body. The value itself lies in a folder
that both sides can reach, under its own hash: ``<first two digits>/<sha256>``. So a reference has no path in it that
could lead elsewhere, equal values are one file, and a reader can check that a fetched value is the right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from coditect.errors import InvalidTask
from coditect.wire.json import dumps, loads

CLAIM_TYPE = "coditect.claim.v1"
"""The value of the header `x-coditect-claim`."""
MARK = "$claim"
MOST_CLAIMED_BYTES = 2**40
_MARK_BYTES = b'"$claim"'
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """A reference to a large value by the value's SHA-256 hash and size."""

    sha256: str
    """64 hexadecimal digits in lower case."""
    size_bytes: int

    @property
    def name(self) -> str:
        """The path of the value's file below the blob folder: `ab/abcd...`."""
        return f"{self.sha256[:2]}/{self.sha256}"

    @property
    def document(self) -> bytes:
        """The JSON object that replaces the value in a message."""
        return dumps({MARK: {"sha256": self.sha256, "bytes": self.size_bytes}})


def claim_check_of(body: bytes) -> ClaimCheck:
    """Return the blob reference of a value's bytes."""
    return ClaimCheck(sha256(body).hexdigest(), len(body))


def as_claim(value: object) -> ClaimCheck | None:
    """Parse a JSON value as a blob reference; return None when the value is not a blob reference."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    told = value.get(MARK)
    if not isinstance(told, dict) or set(told) != {"sha256", "bytes"}:
        return None
    digest, size = told["sha256"], told["bytes"]
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MOST_CLAIMED_BYTES:
        return None
    return ClaimCheck(digest, size)


def claims_in(value: object) -> Iterator[ClaimCheck]:
    """Yield every blob reference inside a JSON value, in document order."""
    claim = as_claim(value)
    if claim is not None:
        yield claim
        return
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, dict | list):
            yield from claims_in(part)


def redeemed(value: Any, values: Mapping[ClaimCheck, Any]) -> Any:
    """Return a copy of a JSON value with each blob reference replaced by its value in `values`."""
    claim = as_claim(value)
    if claim is not None:
        return values[claim]
    if isinstance(value, dict):
        return {name: redeemed(part, values) for name, part in value.items()}
    return [redeemed(part, values) for part in value] if isinstance(value, list) else value


def has_claims(body: bytes) -> bool:
    """Tell whether a JSON document holds a blob reference; almost free for a document without one."""
    return _MARK_BYTES in body and any(claims_in(loads(body)))


def check_claims(body: bytes) -> None:
    """Raise InvalidTask unless a message body holds a blob reference.

    Raises:
        InvalidTask: when the body holds none.
    """
    if not has_claims(body):
        raise InvalidTask(
            "There is no claim in the body", expected='{"$claim": {"sha256": 64 hexadecimal digits, "bytes": a number}}'
        )
