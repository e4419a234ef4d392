"""The routes of locks, breakers and shared state."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Required

from fastapi import Body, Depends, Header, Request, Response
from pydantic import ConfigDict, Field, with_config
from starlette.requests import HTTPConnection

from coditect.api.problems import RequestRefused
from coditect.api.routes.parameters import (
    BY,
    LONGEST_WAIT_SECONDS,
    ApiRequest,
    ChangeReason,
    FreeName,
    Limit,
    Who,
    acting_name,
    while_connected,
)
from coditect.api.services import Fleet, GuardedRouter, Services
from coditect.client.coordination import BreakerListing, LockGrant, LockRow
from coditect.collaboration.locks import GrantedLockOptions
from coditect.collaboration.state import SharedState, StateEntry
from coditect.errors import InputError, NotFound
from coditect.model.duration import seconds
from coditect.model.limits import BreakerState

lock_router = GuardedRouter(tags=["locks and breakers"])


@with_config(ConfigDict(extra="forbid"))
class LockOrder(GrantedLockOptions, total=False):
    """The resources to lock in one step, how long to wait for them (up to 5m), and what the lock is for."""

    resources: Required[Annotated[list[str], Field(min_length=1, max_length=32)]]
    by: Annotated[str, Field(max_length=200, description=f"Who takes it. {BY}")]


class HeldLock(ApiRequest):
    """The fence of a lock that the caller holds: under another one, nothing is renewed or released."""

    fence: int = Field(ge=1, le=2**53)


class LockRelease(ApiRequest):
    """The locks to release by force, with the reason: those of a resource, or of an agent, or of one of its tasks."""

    resource: str | None = Field(default=None, max_length=500)
    agent: str | None = Field(default=None, max_length=100)
    task: str | None = Field(default=None, max_length=100)
    reason: str = Field(default="released by an operator", max_length=1_000)


@lock_router.get("/locks")
async def list_locks(client: Fleet, resource: str | None = None, limit: Limit = 100) -> list[LockRow]:
    """List those that hold locks and those that wait, for all resources or one, in order of arrival at each."""
    return [row async for row in client.locks.list(resource, limit=limit)]


@lock_router.post("/locks", status_code=HTTPStatus.CREATED)
async def acquire_lock(
    order: Annotated[LockOrder, Body()], request: Request, services: Services, client: Fleet, who: Who
) -> LockGrant:
    """Lock resources in one step; 409 names the holders and their reasons. A caller that goes away waits no longer.

    The caller renews the lock before its TTL is over, and releases it, by the ticket and the fence of the answer.
    """
    options: dict[str, Any] = {**order}
    resources, by = options.pop("resources"), await acting_name(services, who, options.pop("by", ""))
    if seconds(options.get("timeout") or 0) > LONGEST_WAIT_SECONDS:
        raise InputError("A request waits at most 5m", parameter="timeout", fix="ask again after it")
    return await while_connected(request, client.locks.acquire(*resources, by=by, **options))


@lock_router.post("/locks/{ticket}/renew")
async def renew_lock(ticket: FreeName, held: HeldLock, client: Fleet) -> dict[str, int]:
    """Keep a lock for another full TTL, and return the milliseconds until it expires; 409 if it was lost."""
    return {"expires_in_ms": await client.locks.renew(ticket, fence=held.fence)}


@lock_router.post("/locks/{ticket}/release")
async def release_lock(ticket: FreeName, held: HeldLock, client: Fleet) -> dict[str, bool]:
    """Release a lock; `released` is false if it was released or lost before, or is held under another fence."""
    return {"released": await client.locks.release(ticket, fence=held.fence)}


@lock_router.post("/locks/release")
async def release_locks(order: LockRelease, client: Fleet) -> dict[str, int]:
    """Release by force a resource's locks, or all that an agent or its task holds or awaits; return how many."""
    return {"released": await client.locks.release_all(**order.model_dump())}


@lock_router.get("/breakers")
async def list_breakers(client: Fleet) -> list[BreakerListing]:
    """List the fleet's breakers that were ever opened or reset, each with its present state."""
    return [row async for row in client.breakers.list()]


@lock_router.get("/breakers/{name}")
async def get_breaker(name: FreeName, client: Fleet) -> BreakerListing:
    """Get a breaker's state in the whole fleet, and when its next probe may be permitted."""
    return await client.breakers.get(name)


@lock_router.post("/breakers/{name}/open")
async def open_breaker(name: FreeName, order: ChangeReason, client: Fleet) -> BreakerState:
    """Open a breaker in the whole fleet, without probes, until it is reset; return its state."""
    return await client.breakers.open(name, reason=order.reason)


@lock_router.post("/breakers/{name}/reset")
async def reset_breaker(name: FreeName, order: ChangeReason, client: Fleet) -> BreakerState:
    """Close a breaker in the whole fleet, and return its state."""
    return await client.breakers.reset(name, reason=order.reason)


OWN = "coditect."
"""The prefix of the names of spaces in which Coditect keeps its own configuration, such as the webhooks."""


async def _not_own(connection: HTTPConnection) -> None:
    """Raise RequestRefused (403) if the path names a space of shared state that Coditect keeps for itself.

    The names of such spaces begin with `coditect.`. An operator could change there, unchecked, what only an admin may.
    """
    if str(connection.path_params.get("space", "")).startswith(OWN):
        fix = "use the routes of what is kept there, such as /v1/webhooks, or choose another name"
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"Spaces that begin with {OWN} are Coditect's own", fix=fix)


space_router = GuardedRouter(tags=["shared state"], dependencies=[Depends(_not_own)])

SPACES = "/state/{space}"
WORKFLOW_STATE = "/workflows/{workflow}/state"
IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", description='The version to replace, such as "3"; "0" for a key without a value.'),
]
NewValue = Annotated[Any, Body(description="The value: any JSON.")]


async def _named_state(space: FreeName, client: Fleet) -> SharedState:
    return client.state(space)


async def _workflow_state(workflow: str, client: Fleet) -> SharedState:
    return client.workflows.get(workflow).shared


NamedState = Annotated[SharedState, Depends(_named_state)]
WorkflowState = Annotated[SharedState, Depends(_workflow_state)]


@space_router.get(SPACES)
async def list_space(shared: NamedState) -> list[StateEntry]:
    """List the keys of a named space, with versions and writers, without the values."""
    return [entry async for entry in shared.entries()]


@space_router.get(SPACES + "/{key:path}/history")
async def list_versions(key: FreeName, shared: NamedState) -> list[StateEntry]:
    """List a key's last 20 versions at most with their writers, the latest first, without the values."""
    return await shared.history(key)


@space_router.get(SPACES + "/{key:path}")
async def get_value(key: FreeName, shared: NamedState, response: Response) -> StateEntry:
    """Return a key's value; its version is the ETag."""
    return await _read(shared, key, response)


@space_router.put(SPACES + "/{key:path}")
async def put_value(
    key: FreeName, value: NewValue, shared: NamedState, response: Response, if_match: IfMatch = None
) -> dict[str, int]:
    """Write a key's value, and return its new version; with If-Match only in place of the version in it, else 412."""
    return await _write(shared, key, value, response, if_match)


@space_router.delete(SPACES + "/{key:path}", status_code=HTTPStatus.NO_CONTENT)
async def delete_value(key: FreeName, shared: NamedState, if_match: IfMatch = None) -> None:
    """Remove a key's value; with If-Match only that version, else 412."""
    await shared.delete(key, if_version=_version(if_match))


@space_router.get(WORKFLOW_STATE)
async def list_workflow_state(shared: WorkflowState) -> list[StateEntry]:
    """List the keys of a workflow's shared state, without the values."""
    return [entry async for entry in shared.entries()]


@space_router.get(WORKFLOW_STATE + "/{key:path}")
async def get_workflow_value(key: FreeName, shared: WorkflowState, response: Response) -> StateEntry:
    """Return a value of a workflow's shared state; its version is the ETag."""
    return await _read(shared, key, response)


@space_router.put(WORKFLOW_STATE + "/{key:path}")
async def put_workflow_value(
    key: FreeName, value: NewValue, shared: WorkflowState, response: Response, if_match: IfMatch = None
) -> dict[str, int]:
    """Write a value of a workflow's shared state, return its version; with If-Match replace only that one, else 412."""
    return await _write(shared, key, value, response, if_match)


async def _read(shared: SharedState, key: str, response: Response) -> StateEntry:
    entry = await shared.entry(key)
    if entry.deleted:
        raise NotFound("This key has no value", key=key)
    response.headers["etag"] = f'"{entry.version}"'
    return entry


async def _write(shared: SharedState, key: str, value: Any, response: Response, if_match: str | None) -> dict[str, int]:
    version = await shared.put(key, value, if_version=_version(if_match))
    response.headers["etag"] = f'"{version}"'
    return {"version": version}


def _version(if_match: str | None) -> int | None:
    if if_match is None:
        return None
    text = if_match.strip().removeprefix('"').removesuffix('"')
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InputError("If-Match is a version in quotes", given=if_match[:80], fix='the ETag of a GET, such as "3"')
    return int(text)


routers = (lock_router, space_router)
