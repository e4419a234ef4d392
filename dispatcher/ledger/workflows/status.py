"""The queries of the shards: their owners, counts of work and live workflows, and the living dispatchers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from coditect.errors import NewerVersion
from dispatcher.ledger.keyspace import LIVE, RUNS
from dispatcher.ledger.nodes.attempts import UNDER_WAY
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.rows import RunRecord
from dispatcher.ledger.workflows.republish import built
from dispatcher.store.transaction import Reads


def status(tr: Reads) -> dict[str, Any]:
    """Return the live dispatchers and, by shard, owner, epoch, broker marker, live workflows and published nodes.

    Of workflows and nodes it gives the counts. The marker is a queue at the broker, None before the first.
    """
    count = shards.fixed_count(tr)
    beats = leases.beats(tr)
    return {"shards": [_shard(tr, shard, beats) for shard in range(count)], "dispatchers": sorted(beats)}


def _shard(tr: Reads, shard: int, beats: Mapping[str, int]) -> dict[str, Any]:
    lease, workflows = leases.read(tr, shards.lease_name(shard)), live(tr, shard)
    states = Counter[str]()
    for row in tr.get_many([RUNS.pack((workflow,)) for workflow in workflows]):
        with suppress(NewerVersion):  # another dispatcher's count is missing, and the rest is told
            states.update({} if row is None else RunRecord.unpack(row).counts)
    return {
        "shard": shard,
        "owner": lease.owner if lease.owner in beats else None,
        "epoch": lease.epoch,
        "marker": built(tr, shard).marker or None,
        "workflows": len(workflows),
        "under_way": sum(states[state] for state in UNDER_WAY),
    }


def live(tr: Reads, shard: int) -> list[str]:
    """Return the ids of a shard's workflows that have not ended."""
    return [LIVE.unpack(key)[1] for key, _ in tr.get_range(*LIVE.range((shard,)))]


def over(tr: Reads, shard: int, workflows: Collection[str]) -> list[str]:
    """Return the ids of those given workflows of a shard that have ended and are not removed."""
    ended = sorted({*workflows}.difference(live(tr, shard)))
    runs = tr.get_many([RUNS.pack((workflow,)) for workflow in ended])
    return [
        workflow
        for workflow, row in zip(ended, runs, strict=True)
        if row is not None and RunRecord.unpack(row).state.terminal
    ]
