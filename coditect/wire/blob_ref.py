"""Claim Check (EIP): what travels in place of a value over the inline limit.

In a message with the header `x-coditect-claim`, an object ``{"$claim": {"sha256": ..., "bytes": ...}}`` stands for
such a value: usually it is the whole body, but it may stand anywhere in it. The value itself lies in a folder that both
sides can reach, under its own hash: ``<first two digits>/<sha256>``. So a claim has no path in it that could lead
elsewhere, the same value twice is one file, and whoever fetches it can tell whether it is the one that was meant.
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
"""What the header says."""
MARK = "$claim"
MOST_CLAIMED_BYTES = 2**40
_MARK_BYTES = b'"$claim"'
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """Which value is meant: its hash, and its size."""

    sha256: str
    """64 hexadecimal digits in lower case."""
    size_bytes: int

    @property
    def name(self) -> str:
        """Where it lies, from the folder: `ab/abcd...`."""
        return f"{self.sha256[:2]}/{self.sha256}"

    @property
    def document(self) -> bytes:
        """The JSON that stands for it."""
        return dumps({MARK: {"sha256": self.sha256, "bytes": self.size_bytes}})


def claim_check_of(body: bytes) -> ClaimCheck:
    """The claim of a value."""
    return ClaimCheck(sha256(body).hexdigest(), len(body))


def as_claim(value: object) -> ClaimCheck | None:
    """The claim that this JSON value is, if it is one; anything else is a value like any other."""
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
    """Every claim in a JSON value, in its order."""
    claim = as_claim(value)
    if claim is not None:
        yield claim
        return
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, dict | list):
            yield from claims_in(part)


def redeemed(value: Any, values: Mapping[ClaimCheck, Any]) -> Any:
    """The JSON value with what its claims stand for."""
    claim = as_claim(value)
    if claim is not None:
        return values[claim]
    if isinstance(value, dict):
        return {name: redeemed(part, values) for name, part in value.items()}
    return [redeemed(part, values) for part in value] if isinstance(value, list) else value


def has_claims(body: bytes) -> bool:
    """Whether a claim stands in this JSON document; costs next to nothing where none does."""
    return _MARK_BYTES in body and any(claims_in(loads(body)))


def check_claims(body: bytes) -> None:
    """Raises: InvalidTask when a body that should hold a claim holds none."""
    if not has_claims(body):
        raise InvalidTask(
            "There is no claim in the body", expected='{"$claim": {"sha256": 64 hexadecimal digits, "bytes": a number}}'
        )
