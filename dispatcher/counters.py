"""Counters: what one dispatcher refused since it began, over all the shards that it had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Its shard workers count together: what a shard worker refused is not forgotten with it."""

    refused: int = 0
    """Commits that came too late: the shard was another's by then."""
    late: int = 0
    """Results that a fence refused."""
    unrecorded: int = 0
    """Results that the ledger could not take: their attempts have failed."""
    newer: int = 0
    """Nodes under way that a newer dispatcher wrote: they are left alone."""
    strange: int = 0
    """Results of nodes that nobody knows."""
    dropped: int = 0
    """Unrouted tasks whose publishers get no answer: the copies were dropped in a flood."""
