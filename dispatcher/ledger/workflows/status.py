"""The query of the shards, with their owners and counts of work, and of the living dispatchers, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dispatcher.ledger.keyspace import FLIGHTS, LIVE
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.workflows.republish import built
from dispatcher.store.keys import Space
from dispatcher.store.transaction import Reads


def status(tr: Reads) -> dict[str, Any]:
    """Return each shard's owner and counts of live workflows and publications, and the living dispatchers."""
    count = shards.fixed_count(tr)
    beats = leases.beats(tr)
    return {"shards": [_shard(tr, shard, beats) for shard in range(count)], "dispatchers": sorted(beats)}


def _shard(tr: Reads, shard: int, beats: Mapping[str, int]) -> dict[str, Any]:
    lease = leases.read(tr, shards.lease_name(shard))
    return {
        "shard": shard,
        "owner": lease.owner if lease.owner in beats else None,
        "epoch": lease.epoch,
        "marker": built(tr, shard).marker or None,
        "workflows": _number_of(tr, LIVE, shard),
        "under_way": _number_of(tr, FLIGHTS, shard),
    }


def _number_of(tr: Reads, space: Space, shard: int) -> int:
    return len(tr.get_range(*space.range((shard,))))
