"""The counters of one dispatcher's refusals since it began, over all shards that it had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """The counters of refusals that all shard workers of a dispatcher share, and that outlive each worker."""

    refused: int = 0
    """The number of commits that were refused because the shard had another owner."""
    late: int = 0
    """The number of results that a fence refused."""
    unrecorded: int = 0
    """The number of results that the ledger could not take: their attempts have failed."""
    strange: int = 0
    """The number of results of unknown nodes."""
    dropped: int = 0
    """The number of unrouted tasks whose publishers get no answer: the copies were dropped in a flood."""
