"""Use cases for breakers: list them, show one, open one by hand, and reset one."""

from __future__ import annotations

from coditect.client.coordination.breakers import BreakerListing
from coditect.errors import NotFound
from coditect.model.limits.breaker import BreakerState
from coditect.operations.connections import Connections


async def list_breakers(opened: Connections) -> list[BreakerListing]:
    """Return the fleet's breakers that ever opened or were reset, sorted by name."""
    async with opened.fleet() as client:
        return [row async for row in client.breakers()]


async def show_breaker(opened: Connections, name: str) -> BreakerListing:
    """Return the breaker of a name, if it ever opened in the fleet, with its state and next probe.

    Raises:
        NotFound: when no breaker of the name ever opened.
    """
    async with opened.fleet() as client:
        async for row in client.breakers(name):
            return row
    raise NotFound("No breaker of this name ever opened in the fleet", breaker=name, fix="coditect breaker list")


async def open_breaker(opened: Connections, name: str, *, reason: str) -> BreakerState:
    """Open a breaker in the whole fleet, without probes, until it is reset; return its state."""
    async with opened.fleet() as client:
        return await client.open_breaker(name, reason=reason)


async def reset_breaker(opened: Connections, name: str, *, reason: str) -> BreakerState:
    """Close a breaker in the whole fleet, and return its state."""
    async with opened.fleet() as client:
        return await client.reset_breaker(name, reason=reason)
