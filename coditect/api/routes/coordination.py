"""The routes of locks and breakers: list them, release or open and reset one by hand."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, ChangeReason, FreeName, Limit
from coditect.api.services import Services, needs
from coditect.client.coordination.breakers import BreakerListing
from coditect.client.coordination.locks import LockRow
from coditect.model.limits.breaker import BreakerState
from coditect.operations.coordination import breakers, locks

router = APIRouter(tags=["locks and breakers"])
steered = APIRouter(tags=["locks and breakers"], dependencies=[needs(Role.OPERATOR)])


class LockRelease(ApiRequest):
    """The locks to release by force, with the reason: those of a resource, or of an agent, or of one of its tasks."""

    resource: str | None = Field(default=None, max_length=500)
    agent: str | None = Field(default=None, max_length=100)
    task: str | None = Field(default=None, max_length=100)
    reason: str = Field(default="released by an operator", max_length=1_000)


@router.get("/locks")
async def list_locks(services: Services, resource: str | None = None, limit: Limit = 100) -> list[LockRow]:
    """List those that hold locks and those that wait, for all resources or one, in order of arrival at each."""
    return await locks.list_locks(services.opened, resource=resource, most=limit)


@steered.post("/locks/release")
async def release_locks(order: LockRelease, services: Services) -> dict[str, int]:
    """Release by force a resource's locks, or all that an agent or its task holds or awaits; return how many."""
    released = await locks.release_locks(
        services.opened, order.resource, agent=order.agent, task=order.task, reason=order.reason
    )
    return {"released": released}


@router.get("/breakers")
async def list_breakers(services: Services) -> list[BreakerListing]:
    """List the fleet's breakers that were ever opened or reset, each with its present state."""
    return await breakers.list_breakers(services.opened)


@router.get("/breakers/{name}")
async def show_breaker(name: FreeName, services: Services) -> BreakerListing:
    """Show a breaker's state in the whole fleet, and when its next probe may be permitted."""
    return await breakers.show_breaker(services.opened, name)


@steered.post("/breakers/{name}/open")
async def open_breaker(name: FreeName, order: ChangeReason, services: Services) -> BreakerState:
    """Open a breaker in the whole fleet, without probes, until it is reset; return its state."""
    return await breakers.open_breaker(services.opened, name, reason=order.reason)


@steered.post("/breakers/{name}/reset")
async def reset_breaker(name: FreeName, order: ChangeReason, services: Services) -> BreakerState:
    """Close a breaker in the whole fleet, and return its state."""
    return await breakers.reset_breaker(services.opened, name, reason=order.reason)
