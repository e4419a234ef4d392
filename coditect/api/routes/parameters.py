"""The types of what several HTTP routes take: page limits, waiting times, idempotency keys, the caller, bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from coditect.api.access import Caller, Role
from coditect.api.guard import ENCODED_SLASH
from coditect.api.problems import DURATION, RequestRefused
from coditect.api.services import ApiServices
from coditect.client.options import RequestKey
from coditect.errors import NotFound
from coditect.integrations import tools
from coditect.model.duration import seconds
from coditect.model.ids import AgentId, name_in
from coditect.operations.fleet import get_agent

T = TypeVar("T")

MOST_ROWS = 1_000
BY = "Only an admin, or a caller of an API without keys, may name another; default: the caller."
"""The description of a field that names the actor."""

Span = Annotated[str, Field(pattern=DURATION, examples=["30s", "5m", "2h"])]
"""A duration as text."""
LONGEST_WAIT_SECONDS = 300.0


def _bounded(wait: str | None) -> str | None:
    """Return the waiting time of a request (None without one) unchanged; raise ValueError for over five minutes.

    Neither proxies nor people have patience for more.
    """
    if wait is not None and seconds(wait) > LONGEST_WAIT_SECONDS:
        raise ValueError("a wait is at most 5m; ask again after it")
    return wait


ShortSpan = Annotated[Span, AfterValidator(_bounded)]
"""A duration as text, of at most five minutes: so long a request waits for its answer."""
Wait = Annotated[
    Span | None, AfterValidator(_bounded), Query(description="How long to wait for the end before answering; up to 5m.")
]
FreeName = Annotated[
    str, BeforeValidator(lambda name: name.replace(ENCODED_SLASH, "/")), Path(min_length=1, max_length=200)
]
"""A name in a path that may be any text; its slashes are sent as %2F."""
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="The most rows of the answer.")]
Cursor = Annotated[
    str | None, Query(max_length=2_000, description="The `next` of the page before; without it, the first page.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Makes a repeated request harmless: the same caller's same key gives what the first one made.",
    ),
]


class ApiRequest(BaseModel):
    """A body of a request; a field that it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChangeReason(ApiRequest):
    """The body of a request whose change needs only a reason."""

    reason: str = Field(default="by the HTTP API", max_length=1_000)


async def _who(connection: HTTPConnection) -> Caller:
    caller: Caller = connection.state.caller
    return caller


Who = Annotated[Caller, Depends(_who)]
"""The type of a route's parameter that takes the caller."""


async def acting_name(services: ApiServices, who: Caller, named: str | None, *, default: str | None = None) -> str:
    """Return the name in which a caller acts: its own or, with the role admin or without keys, the named one.

    A key also acts for the agents of its name that the registry knows, whose ids are the name, a hyphen and eight
    digits. When none is named, an admin acts in the `default` name.

    Raises:
        RequestRefused: 403, when the caller may not act in the named one's name.
        RegistryUnavailable: when the agent cannot be looked up; retryable.
    """
    if not named:
        return (default or who.name) if who.role is Role.ADMIN else who.name
    if not await may_act(services, who, named):
        fix = f"use a key of that name, coditect api key create {named}, or one with the role admin"
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"The key {who.name} may not act in another name", fix=fix)
    return named


async def may_act(services: ApiServices, who: Caller, named: str) -> bool:
    """Tell whether a caller may act in a name.

    Raises:
        RegistryUnavailable: when the agent cannot be looked up; retryable.
    """
    if who.role is Role.ADMIN or named == who.name:
        return True
    if name_in(named) != who.name:
        return False
    try:
        return (await get_agent(services.opened, AgentId(named))).registration.name == who.name
    except NotFound:
        return False


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await work for a request whose body was read; cancel it when the caller goes away, since its answer is lost.

    Raises:
        HTTPException: 408, which nobody reads, when the caller went away before the end.
    """
    doing, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "The caller went away")
        return doing.result()
    finally:
        gone.cancel()
        doing.cancel()
        await asyncio.wait({doing, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def own_key(caller: Caller, key: str | None) -> str | None:
    """Return an idempotency key with the caller's name before it, as the control plane keeps it; None without a key."""
    return None if key is None else tools.own_key("api", caller.name, key, None).key


def request_key(caller: Caller, key: str | None, request: object, *, of: str = "") -> RequestKey | None:
    """Return a caller's idempotency key with a hash that tells its request from others; None without a key.

    The hash depends on the kind of the request, on what it is about, and on its fields, not on their order.
    """
    if key is None:
        return None
    fields = request.model_dump(mode="json", exclude_defaults=True) if isinstance(request, BaseModel) else request
    return tools.own_key("api", caller.name, key, [type(request).__name__, of, fields])
