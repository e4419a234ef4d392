"""How a sender picks the agent to prefer, and what it wants of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from coditect.errors import InputError


class Strategy(StrEnum):
    """How the sender picks."""

    ROUND_ROBIN = "round_robin"
    LEAST_BUSY = "least_busy"
    LOAD_BALANCED = "load_balanced"
    BEST_MATCH = "best_match"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the best match should have, beside the capability itself; each entry counts the same.

    Raises: InputError for a bare text where a set of texts is meant.
    """

    tags: Collection[str] = frozenset()
    """Of the agent, or of one of its capabilities."""
    capabilities: Collection[str] = frozenset()
    """That it offers, too."""
    keywords: Collection[str] = frozenset()
    """That occur, in any case, in a name or tag of it, or in a capability's name, description or tags."""

    def __post_init__(self) -> None:
        for given in (self.tags, self.capabilities, self.keywords):
            if isinstance(given, str):
                raise InputError("What is wanted is a set of texts", given=given[:120], fix=f"write {{{given[:40]!r}}}")

    def __len__(self) -> int:
        return len(self.tags) + len(self.capabilities) + len(self.keywords)


ANYTHING = Wanted()
"""Every agent that offers the capability is as good a match as any other."""
