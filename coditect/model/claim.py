"""Claim Check (EIP): the small document that travels as the body in place of a value over the inline limit.

The value itself lies in a folder that both sides can reach, under its own hash: ``<first two digits>/<sha256>``. So
the document has no path in it that could lead elsewhere, the same value twice is one file, and whoever fetches it
can tell whether it is the one that was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256

from coditect.errors import InvalidTask
from coditect.model.json import dumps, loads

CLAIM_TYPE = "coditect.claim.v1"
"""The schema of the document; what the header `x-coditect-claim` says."""
MOST_CLAIMED_BYTES = 2**40
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Claim:
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
        """The body that travels instead of it."""
        return dumps({"sha256": self.sha256, "bytes": self.size_bytes})


def claim_of(body: bytes) -> Claim:
    """The claim of a value."""
    return Claim(sha256(body).hexdigest(), len(body))


def read_claim(document: bytes) -> Claim:
    """The claim in a body. Raises: InvalidTask when it is none."""
    value = loads(document)
    digest, size = (value.get("sha256"), value.get("bytes")) if isinstance(value, dict) else (None, None)
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise InvalidTask("A claim names the SHA-256 of its value", expected="64 hexadecimal digits in lower case")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MOST_CLAIMED_BYTES:
        raise InvalidTask("A claim says how many bytes its value has", most=MOST_CLAIMED_BYTES)
    return Claim(digest, size)
