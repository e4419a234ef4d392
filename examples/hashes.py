"""An agent that computes: a plain function runs in a thread, so the event loop stays quick."""

import hashlib
import os
from dataclasses import dataclass

from coditect import Agent

hashes = Agent("hashes", version="1.0.0", slots=2)


@dataclass
class Digest:
    sha256: str
    pid: int


@hashes.capability("text.hash", timeout="20s")
def digest(text: str) -> Digest:
    """Return the hash of a text, by 40,000 rounds of SHA-256."""
    key = hashlib.pbkdf2_hmac("sha256", text.encode(), b"salt", 40_000)
    return Digest(key.hex(), os.getpid())
