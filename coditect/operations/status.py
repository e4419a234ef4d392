"""Asks the control plane how it stands: its shards, and every dispatcher with what it refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coditect.aio.clock import Clock, SystemClock
from coditect.broker.port import Broker
from coditect.client.control_plane import ControlPlane, asking
from coditect.errors import ControlPlaneRequired, Retryable
from coditect.wire.control import Verb

OWN_SECONDS = 3.0
"""How long each dispatcher is given to say what it counted itself."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard, by the ledger."""

    shard: int
    owner: str | None
    """None when nobody alive has it."""
    epoch: int
    workflows: int
    """That have not ended."""
    under_way: int
    """Nodes that are published or run."""


@dataclass(frozen=True, slots=True)
class RefusalCounts:
    """What a dispatcher counted since it began."""

    under_way: int
    """Nodes of its shards that are published or run."""
    refused: int
    """Commits that came too late: the shard was another's by then."""
    late: int
    """Results that a fence refused."""
    strange: int
    """Results of nodes that nobody knows."""
    unrecorded: int
    """Results that the ledger could not take."""
    dropped: int
    """Unrouted tasks whose publishers get no answer: a flood dropped the copies that are answered from."""
    restarts: int
    """Loops of the process that died and were started again."""
    newer: int
    """Nodes under way that a newer dispatcher wrote."""


@dataclass(frozen=True, slots=True)
class DispatcherStatus:
    """A dispatcher that is not taken for dead."""

    owner: str
    shards: tuple[int, ...]
    counts: RefusalCounts | None
    """None when it did not answer, or has no shard by which it could be asked."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The control plane as it stands."""

    dispatchers: tuple[DispatcherStatus, ...]
    shards: tuple[ShardStatus, ...]


async def cluster_status(broker: Broker, *, clock: Clock | None = None) -> ClusterStatus:
    """How the control plane stands. Changes nothing.

    Raises: ControlPlaneRequired when no dispatcher answers; BrokerUnavailable.
    """
    clock = clock or SystemClock()
    async with asking(broker, clock, name=f"standing-{clock.new_id()}") as control:
        status = await control.ask(Verb.STATUS, {})
        shards = tuple(_shard(row) for row in status["shards"])
        told = dict([_counted(status["answered_by"])])
        asked = {one.owner: one.shard for one in shards if one.owner is not None and one.owner not in told}
        answers = await asyncio.gather(*(_ask(control, shard) for shard in asked.values()))
    told |= dict(_counted(answer) for answer in answers if answer is not None)
    owned = {owner: tuple(one.shard for one in shards if one.owner == owner) for owner in status["dispatchers"]}
    return ClusterStatus(tuple(DispatcherStatus(owner, owned[owner], told.get(owner)) for owner in owned), shards)


async def _ask(control: ControlPlane, shard: int) -> Mapping[str, Any] | None:
    """What the owner of the shard counted; None when it does not answer in time."""
    try:
        answer = await control.ask(Verb.STATUS, {"shard": shard}, timeout=OWN_SECONDS)
    except (ControlPlaneRequired, Retryable):
        return None
    figures: Mapping[str, Any] = answer["answered_by"]
    return figures


def _shard(row: Mapping[str, Any]) -> ShardStatus:
    return ShardStatus(row["shard"], row["owner"], row["epoch"], row["workflows"], row["under_way"])


def _counted(figures: Mapping[str, Any]) -> tuple[str, RefusalCounts]:
    names = ("under_way", "refused", "late", "strange", "unrecorded", "dropped", "restarts", "newer")
    return figures["owner"], RefusalCounts(*(int(figures.get(name, 0)) for name in names))
