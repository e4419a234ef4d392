"""Strategies by which a sender selects the preferred agent, and the criteria of the best match."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from coditect.errors import InputError


class Strategy(StrEnum):
    """A strategy by which a sender selects the agent that it prefers for a task."""

    ROUND_ROBIN = "round_robin"
    LEAST_BUSY = "least_busy"
    LOAD_BALANCED = "load_balanced"
    BEST_MATCH = "best_match"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tags, capabilities and keywords that the best matching agent should have; each entry counts equally.

    Raises:
        InputError: for a bare text where a set of texts is meant.
    """

    tags: Collection[str] = frozenset()
    """Tags that the agent, or one of its capabilities, should have."""
    capabilities: Collection[str] = frozenset()
    """Further capabilities that the agent should offer."""
    keywords: Collection[str] = frozenset()
    """Words that should occur, in any case, in the agent's name or tags, or in a capability's name, text or tags."""

    def __post_init__(self) -> None:
        for given in (self.tags, self.capabilities, self.keywords):
            if isinstance(given, str):
                raise InputError("What is wanted is a set of texts", given=given[:120], fix=f"write {{{given[:40]!r}}}")

    def __len__(self) -> int:
        return len(self.tags) + len(self.capabilities) + len(self.keywords)


ANYTHING = Wanted()
"""No criteria at all: every agent that offers the capability matches equally well."""
