"""The signature of an answer to an approval, by a key that people's programs and dispatchers have and agents do not."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from coditect.wire.json import dumps

MIN_APPROVAL_KEY_CHARACTERS = 32
"""The fewest characters of a key."""
_SIGNED = ("workflow", "node", "granted", "by", "comment")


def signature(key: str, answer: Mapping[str, Any], *, asked_ms: int) -> str:
    """Return the HMAC-SHA256 of an answer and of when its question was asked, so that it fits no later question."""
    signed = [answer.get(name) for name in _SIGNED]
    return hmac.new(key.encode(), dumps([*signed, asked_ms]), hashlib.sha256).hexdigest()


def is_signed(key: str, answer: Mapping[str, Any], *, asked_ms: int) -> bool:
    """Tell whether an answer is signed with the key; the signatures are compared in constant time."""
    claimed = str(answer.get("signature") or "")
    return hmac.compare_digest(claimed.encode(), signature(key, answer, asked_ms=asked_ms).encode())
