"""A remote A2A agent that this process calls: its card, and its connections while it is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from a2a.client import Client, ClientCallContext, ClientConfig, ClientFactory
from a2a.client.auth import AuthInterceptor, CredentialService
from a2a.client.card_resolver import A2ACardResolver
from a2a.types import a2a_pb2 as a2a
from a2a.utils.constants import TransportProtocol
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from coditect.errors import InputError, SetupError
from coditect.integrations.a2a.parts import parts_of
from coditect.integrations.a2a.remote.calling import Progress, RemoteCall
from coditect.integrations.a2a.remote.failures import TOKEN, RemoteAsks, judged
from coditect.integrations.a2a.remote.transport import checked_client
from coditect.integrations.http.addresses import AllowedHosts
from coditect.integrations.http.failures import AnswerBroken
from coditect.settings.a2a import A2A_DEFAULTS, A2aSettings

CARD_SECONDS = 30.0
SKILL = "skillId"
"""The name in a message's metadata under which it says which skill is wanted, as many agents read it."""
PRIVATE = "CODITECT_A2A_PRIVATE"


class RemoteAgent:
    """A remote A2A agent, known by its URL, which can be called inside of the block of `open`."""

    def __init__(self, url: str, *, settings: A2aSettings = A2A_DEFAULTS) -> None:
        """Take the URL below which the agent card is found.

        Raises:
            InputError: when it is no URL of http or https, or has a user, a query or a fragment.
        """
        self._hosts = AllowedHosts(("*",), settings.private, PRIVATE)
        self.url = self._hosts.check(url)
        self._token = settings.token
        self._client: Client | None = None
        self._streaming = False

    async def card(self) -> a2a.AgentCard:
        """Ask the remote agent for its card, and return it after a check that the agent can be called.

        Raises:
            AgentRefused: when the agent takes no connection; retryable.
            InputError: when its address is not allowed.
            AgentLost: when the connection breaks, or no card comes within 30 s; retryable.
            AnswerBroken: when the answer is no card; retryable.
            RemoteRejected: when the agent refuses the request, or the token.
            SetupError: when the agent speaks no JSON-RPC, or not where the token may go.
        """
        async with checked_client(self._hosts, token=self._token) as http:
            with judged(self.url):
                async with asyncio.timeout(CARD_SECONDS):
                    card = await A2ACardResolver(http, self.url).get_agent_card()
        self._check(card)
        return card

    @asynccontextmanager
    async def open(self, card: a2a.AgentCard) -> AsyncIterator[None]:
        """Open an HTTP client for calls to the agent that a checked card describes, and close it after the block.

        The agent can be opened again afterwards, also on another event loop.
        """
        self._streaming = card.capabilities.streaming
        async with checked_client(self._hosts, token=self._token) as http:
            factory = ClientFactory(ClientConfig(httpx_client=http, polling=not self._streaming))
            self._client = factory.create(card, [AuthInterceptor(_OneToken(self._token))])
            try:
                yield
            finally:
                self._client = None

    async def call(self, skill: str, value: Any, message_id: str, progress: Progress) -> Any:
        """Send a value to a skill and return the result of its task; cancel the task if it asks back, or if canceled.

        A task that asks back wants more input, or an authorization. An answer that is none of A2A cancels it, too.

        Raises:
            RemoteFailed: when the task failed; retryable.
            RemoteRejected: when the agent refuses the message, the token or the task.
            RemoteAsks: when the task waits for more input, or an authorization; it is canceled.
            AgentRefused: when the agent takes no connection for 30 s; retryable.
            AgentLost: when the agent goes away, or forgets the task; retryable.
            AnswerBroken: when an answer is none of A2A; retryable.
        """
        if self._client is None:
            raise SetupError("The remote agent is not open", url=self.url)
        message = a2a.Message(
            message_id=message_id,
            role=a2a.Role.ROLE_USER,
            parts=parts_of(value),
            metadata=ParseDict({SKILL: skill}, Struct()),
        )
        call = RemoteCall(self._client, self.url, progress, streaming=self._streaming)
        try:
            return await call.run(a2a.SendMessageRequest(message=message))
        except asyncio.CancelledError:
            await asyncio.shield(call.cancel())
            raise
        except (RemoteAsks, AnswerBroken):
            await call.cancel()
            raise

    def _check(self, card: a2a.AgentCard) -> None:
        """Check that a card offers JSON-RPC at valid URLs, and, if a token is sent, only at the agent's own address."""
        places = [one.url for one in card.supported_interfaces if one.protocol_binding == TransportProtocol.JSONRPC]
        if not places:
            bindings = sorted({one.protocol_binding[:50] for one in card.supported_interfaces})
            raise SetupError("The remote agent speaks no JSON-RPC", url=self.url, bindings=bindings)
        for place in places:
            try:
                self._hosts.check(place)
            except InputError as error:
                raise SetupError("The agent card names no URL", url=self.url, given=place[:200]) from error
            if self._token is not None and urlsplit(place)[:2] != urlsplit(self.url)[:2]:
                fix = f"give the agent's own address, or unset {TOKEN}: the token goes to no other host"
                raise SetupError("The agent card names another host", url=self.url, given=place[:200], fix=fix)


class _OneToken(CredentialService):
    """The credentials for calls to a remote agent: one token, whichever security scheme the agent's card names."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def get_credentials(self, security_scheme_name: str, context: ClientCallContext | None) -> str | None:
        """Return the token of the settings, whichever security scheme is asked for; None when they have none."""
        return self._token
