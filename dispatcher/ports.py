"""What a dispatcher's parts are given: the ports, and nothing of what stands behind them."""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker
from coditect.messaging.event_publisher import Events
from coditect.registry.reference_clock import ReferenceClock
from dispatcher.capacity import Capacity
from dispatcher.store.port import Database


@dataclass(frozen=True, slots=True)
class ClaimPaths:
    """By which ways nodes come to the claim. Switched off only to see the others alone."""

    on_record: bool = True
    """In the transaction that records the result before them."""
    from_rq: bool = True
    """RQ holds the backlog, and the bridge takes from it."""
    from_index: bool = True
    """From the ready index, when RQ brings nothing."""


@dataclass(frozen=True, slots=True)
class Ports:
    """One dispatcher's surroundings."""

    broker: Broker
    database: Database
    events: Events
    clock: ReferenceClock
    background: Supervisor
    window: Capacity
    ways: ClaimPaths = field(default_factory=ClaimPaths)
    floor: int = 0
    """What this dispatcher's fences and publication numbers are above: see `ledger/incarnation.py`."""
    quorum: bool = False
    """Whether results and requests lie in quorum queues, as they should in a cluster."""
