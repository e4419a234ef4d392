"""The ports and settings that the parts of a dispatcher share, without any adapter."""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker
from coditect.messaging.event_publisher import Events
from coditect.registry.reference_clock import ReferenceClock
from coditect.telemetry.metrics import MemoryMetrics, Metrics
from dispatcher.capacity import Capacity
from dispatcher.store.port import Database


@dataclass(frozen=True, slots=True)
class ClaimPaths:
    """The switches of the paths by which nodes are claimed; only tests switch a path off."""

    on_record: bool = True
    """Whether nodes are claimed in the transaction that records their predecessor's result."""
    from_rq: bool = True
    """Whether the bridge takes nodes from RQ's queues, which hold the backlog."""
    from_index: bool = True
    """Whether nodes are claimed from the ready index when RQ brings none."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports and settings of one dispatcher."""

    broker: Broker
    database: Database
    events: Events
    clock: ReferenceClock
    background: Supervisor
    window: Capacity
    ways: ClaimPaths = field(default_factory=ClaimPaths)
    floor: int = 0
    """The number below this dispatcher's fences and publication numbers: see `ledger/ownership/incarnation.py`."""
    quorum: bool = False
    """Whether results and requests lie in quorum queues, as they should in a cluster."""
    metrics: Metrics = field(default_factory=MemoryMetrics)
