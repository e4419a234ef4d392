"""The A2A agent of a test fleet, and the SDK's own client of it, without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import httpx
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from a2a.types import a2a_pb2 as a2a
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from coditect import Agent
from coditect.api.access import Access
from coditect.api.application import create_app
from coditect.api.services import ApiServices
from coditect.integrations.a2a.serving import A2aEndpoints
from coditect.settings.settings import ApiSettings
from coditect.testing import TestFleet
from tests.api import ADDRESS, services_of, serving


@dataclass(frozen=True)
class Connected:
    """A client of a fleet's agent, the agent's card, and plain HTTP."""

    client: Client
    card: a2a.AgentCard
    http: httpx.AsyncClient


@asynccontextmanager
async def connected(
    agents: Iterable[Agent],
    *,
    access: Access | None = None,
    settings: ApiSettings | None = None,
    key: str = "",
    streaming: bool = False,
) -> AsyncIterator[Connected]:
    """A fleet whose API serves A2A, and a client of it."""
    given = settings or ApiSettings()
    async with (
        TestFleet(agents=list(agents)) as running,
        services_of(running.server, running.registry, running.client, access=access) as services,
    ):
        offering = replace(services, a2a=lambda: A2aEndpoints(services.opened, given))
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with _http(offering, given, real=streaming) as http:
            http.headers.update(headers)
            card = await A2ACardResolver(http, str(http.base_url)).get_agent_card()
            factory = ClientFactory(ClientConfig(httpx_client=http, streaming=streaming))
            yield Connected(factory.create(card), card, http)


@asynccontextmanager
async def _http(services: ApiServices, settings: ApiSettings, *, real: bool) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP to the API: on a real socket for streams, which httpx reads as a whole without one."""
    if real:
        async with serving(services, settings) as (address, _), httpx.AsyncClient(base_url=address, timeout=60) as http:
            yield http
    else:
        app = create_app(services, settings)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS, timeout=60) as http:
            yield http


def message(content: Any, skill: str | None = None, **more: Any) -> a2a.SendMessageRequest:
    """A message with a text or data, for a skill."""
    part = a2a.Part(text=content) if isinstance(content, str) else a2a.Part(data=ParseDict(content, Value()))
    metadata = ParseDict({} if skill is None else {"skillId": skill}, Struct())
    fields = {"message_id": str(uuid4())} | more
    return a2a.SendMessageRequest(
        message=a2a.Message(role=a2a.Role.ROLE_USER, parts=[part], metadata=metadata, **fields)
    )


def at_once(request: a2a.SendMessageRequest) -> a2a.SendMessageRequest:
    """The same message, whose sender does not wait."""
    request.configuration.return_immediately = True
    return request


async def sent(client: Client, request: a2a.SendMessageRequest) -> a2a.Task:
    """The task of a message, as the answer has it."""
    (answer,) = [answered async for answered in client.send_message(request)]
    return answer.task


def value(task: a2a.Task) -> Any:
    """The value of a task whose artifact has one part."""
    (artifact,) = task.artifacts
    (part,) = artifact.parts
    return part.text if part.HasField("text") else MessageToDict(part.data)
