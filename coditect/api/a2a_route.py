"""The routes of the fleet's A2A agent: the agent card, and JSON-RPC for callers of the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coditect.api.access.roles import Caller, OpenAccess, Role
from coditect.api.services import ApiServices, FleetA2a, caller_of, check_role
from coditect.wire.tasks import MAX_BODY_BYTES

CARD = "/.well-known/agent-card.json"
PATH = "/a2a"


def a2a_routes(services: ApiServices, load: Callable[[], FleetA2a]) -> list[Route]:
    """Return the routes of an A2A agent, which is loaded in a thread at the first request.

    Who reads may ask for tasks; sending and canceling need the role operator. A caller without credentials gets a card
    that says which are wanted, and not what the fleet can do.
    """

    loaded: FleetA2a | None = None

    async def fleet() -> FleetA2a:
        nonlocal loaded
        if loaded is None:
            loaded = await asyncio.to_thread(load)
        return loaded

    async def agent_card(request: Request) -> Response:
        known = isinstance(services.access, OpenAccess) or "authorization" in request.headers
        if known:
            check_role(await caller_of(request), Role.VIEWER)
        return await (await fleet()).card(request, _address(request), whole=known)

    async def a2a_call(request: Request) -> Response:
        caller = await caller_of(request)
        check_role(caller, Role.VIEWER)
        agent = await fleet()
        try:
            body = await request.body()
        except HTTPException as error:
            if error.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise
            return JSONResponse(agent.refusal(error.detail))
        if len(body) > MAX_BODY_BYTES:  # reading data takes microseconds for each number, and stops all else meanwhile
            return JSONResponse(agent.refusal(f"A request has at most {MAX_BODY_BYTES} bytes"))
        if (refused := await agent.unsupported(request)) is not None:
            return JSONResponse(refused)
        return await agent.call(request, _address(request), caller.name, partial(_check, caller))

    return [Route(CARD, agent_card, methods=["GET"]), Route(PATH, a2a_call, methods=["POST"])]


def _check(caller: Caller, role: str) -> None:
    check_role(caller, Role(role))


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/") + PATH
