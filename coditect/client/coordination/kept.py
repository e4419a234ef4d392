"""All that a client does with breakers, handoffs, locks, schedules, discussion threads and triggers, in one mixin."""

from __future__ import annotations

from coditect.client.coordination.breakers import ClientBreakers
from coditect.client.coordination.handoffs import ClientHandoffs
from coditect.client.coordination.locks import ClientLocks
from coditect.client.coordination.schedules import ClientSchedules
from coditect.client.coordination.threads import ClientThreads
from coditect.client.coordination.triggers import ClientTriggers


class ClientCoordination(ClientBreakers, ClientHandoffs, ClientLocks, ClientSchedules, ClientThreads, ClientTriggers):
    """The mixin that gives `Client` its breakers, handoffs, locks, schedules, discussion threads and triggers."""
