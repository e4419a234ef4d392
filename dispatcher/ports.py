"""The ports (interfaces to broker, store, clock and others) and settings that all parts of one dispatcher share."""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker
from coditect.messaging.event_publisher import Events
from coditect.registry.reference_clock import ReferenceClock
from coditect.telemetry.metrics import MemoryMetrics, Metrics
from coditect.telemetry.tracing.port import NO_TRACING, Tracing
from coditect.workflow.approvals.policy import ApprovalPolicy
from dispatcher.capacity import Capacity
from dispatcher.store.port import Database


@dataclass(frozen=True, slots=True)
class ClaimPaths:
    """The switches, for tests, of three ways to claim ready nodes: after a predecessor, by RQ, from the ledger."""

    on_record: bool = True
    """Whether a node is claimed in the transaction that records its predecessor's result."""
    from_rq: bool = True
    """Whether the bridge proposes nodes from RQ's queues, which hold the backlog."""
    from_index: bool = True
    """Whether the scheduler claims nodes from the ledger's index of ready nodes when RQ proposes none."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports (broker, store, clock and others) and settings that all parts of one dispatcher share."""

    broker: Broker
    database: Database
    events: Events
    clock: ReferenceClock
    background: Supervisor
    capacity: Capacity
    ways: ClaimPaths = field(default_factory=ClaimPaths)
    floor: int = 0
    """The number above which this dispatcher's fences and publications begin: see `ledger/ownership/incarnation.py`."""
    quorum: bool = False
    """Whether all queues are quorum queues, as in a cluster; then follow-up tasks go to the capabilities' queues."""
    metrics: Metrics = field(default_factory=MemoryMetrics)
    tracing: Tracing = NO_TRACING
    approvals: ApprovalPolicy | None = None
