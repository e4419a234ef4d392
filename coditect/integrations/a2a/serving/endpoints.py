"""The endpoints of a fleet's A2A agent, for the routes of the API: the agent card, and JSON-RPC with its streams."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from a2a.auth.user import User
from a2a.server.context import ServerCallContext
from a2a.server.jsonrpc_models import JSONParseError
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes.agent_card_routes import create_agent_card_routes
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_1_0, VERSION_HEADER
from a2a.utils.errors import InvalidRequestError, VersionNotSupportedError

from coditect.errors import InvalidTask
from coditect.integrations.a2a.serving.card import fleet_card
from coditect.integrations.a2a.serving.requests import ADDRESS, FleetRequests, Sender
from coditect.operations.connections import Connections
from coditect.settings.api import ApiSettings
from coditect.wire.json import loads

CACHED = "private, max-age=10"
"""How long a client may keep a card: agents come and go."""
_VERSION_1 = re.compile(r"1(\.\d{1,9}){0,2}", re.ASCII)


class A2aEndpoints:
    """The endpoints of a fleet's A2A agent; they take requests of Starlette whose senders the API has checked."""

    def __init__(self, opened: Connections, settings: ApiSettings) -> None:
        self._settings = settings
        self._requests = FleetRequests(opened, settings)
        self._dispatcher = JsonRpcDispatcher(self._requests, _SenderContexts())

    async def card(self, request: Any, address: str, *, whole: bool) -> Any:
        """Answer with the agent card, which names `address` as the agent's URL; unless `whole`, without the skills."""
        skills = await self._requests.skills() if whole else {}
        card = fleet_card(skills, self._settings, url=address)
        (route,) = create_agent_card_routes(card, cache_control=CACHED)
        return await route.endpoint(request)

    async def call(self, request: Any, address: str, name: str, check: Callable[[str], None]) -> Any:
        """Answer the JSON-RPC request that `name` sent to a URL; `check` raises if that sender lacks a given role."""
        request.state.a2a = (address, Sender(name, check))
        return await self._dispatcher.handle_requests(request)

    async def unsupported(self, request: Any) -> dict[str, Any] | None:
        """Return the JSON-RPC error for a request that is no JSON, or of another version of the protocol than 1.

        The version is checked before the methods and fields, which have other names in another version.
        """
        try:
            body = loads(await request.body())
        except InvalidTask as error:
            return build_error_response(None, JSONParseError(message=str(error)))
        given = request.headers.get(VERSION_HEADER) or PROTOCOL_VERSION_0_3
        if _VERSION_1.fullmatch(given.strip()):
            return None
        found = body.get("id") if isinstance(body, dict) else None
        number = found if isinstance(found, str | int) and not isinstance(found, bool) else None
        fix = f"send the header {VERSION_HEADER}: {PROTOCOL_VERSION_1_0}"
        sentence = f"The version {given[:20]!r} of A2A is not served; {fix}"
        return build_error_response(number, VersionNotSupportedError(sentence, data={"fix": fix}))

    def refusal(self, sentence: str) -> dict[str, Any]:
        """Return the JSON-RPC error for a request that is refused unread, such as one that is too large."""
        return build_error_response(None, InvalidRequestError(sentence))


class _SenderContexts(DefaultServerCallContextBuilder):
    """The builder of the SDK's call contexts, which adds the sender that the API has let in."""

    def build(self, request: Any) -> ServerCallContext:
        """Return the SDK's call context of a request, with the address at which the sender reached the agent."""
        context = super().build(request)
        context.state[ADDRESS] = request.state.a2a[0]
        request.state.call = context.state  # where the dispatcher notes the method, which the audit line says
        return context

    def build_user(self, request: Any) -> User:
        """Return the sender of a request, whom the API has let in before."""
        sender: Sender = request.state.a2a[1]
        return sender
