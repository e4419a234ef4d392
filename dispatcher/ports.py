"""The ports (interfaces to broker, store, clock and others) and settings that all parts of one dispatcher share."""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker
from coditect.messaging.event_publisher import Events
from coditect.registry.port import ReferenceClock
from coditect.telemetry.metrics import MemoryMetrics, Metrics
from coditect.telemetry.tracing import NO_TRACING, Tracing
from coditect.workflow.approvals.policy import ApprovalPolicy
from dispatcher.capacity import Capacity
from dispatcher.store.port import Database


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports (broker, store, clock and others) and settings that all parts of one dispatcher share."""

    broker: Broker
    database: Database
    events: Events
    clock: ReferenceClock
    background: Supervisor
    capacity: Capacity
    floor: int = 0
    """The number above which this dispatcher's fences and publications begin: see `ledger/ownership/incarnation.py`."""
    quorum: bool = False
    """Whether all queues are quorum queues, as in a cluster; then follow-up tasks go to the capabilities' queues."""
    metrics: Metrics = field(default_factory=MemoryMetrics)
    tracing: Tracing = NO_TRACING
    approvals: ApprovalPolicy | None = None
