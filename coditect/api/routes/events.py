"""The routes of events: emit one, follow them by a stream of server-sent events or a WebSocket, or by webhooks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Required, Self

from fastapi import Body, Depends, Header, Query, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, with_config
from starlette.requests import HTTPConnection
from starlette.types import Message, Send
from starlette.websockets import WebSocketDisconnect

from coditect.aio.clock import SystemClock
from coditect.api.access import Role
from coditect.api.live import PING, LiveFrame, LiveStream
from coditect.api.problems import error_answer
from coditect.api.routes.parameters import BY, ApiRequest, Who, acting_name
from coditect.api.services import Fleet, GuardedRouter, Services
from coditect.api.webhooks import WebhookAttempt
from coditect.client.webhooks import LONGEST_URL, Webhook, WebhookOptions, check_url
from coditect.errors import CoditectError, InputError
from coditect.messaging.event_stream import EventFilter

log = logging.getLogger(__name__)

event_router = GuardedRouter(tags=["events"])

SEND_SECONDS = 30.0
"""How long a reader may take no bytes at all before its stream is cut."""
MOST_CHOSEN = 100
RETRY_MS = 2_000
"""After how many milliseconds a browser opens its stream again."""
TEXT = {"type": "string"}
GOING_AWAY = 1001
PARAMETERS = frozenset({"kind", "task", "workflow", "capability", "agent", "last_event_id"})

Kinds = Annotated[
    list[str],
    Query(default_factory=list, max_length=MOST_CHOSEN, description="Types of events, or their first words: `task`."),
]
Chosen = Annotated[list[str], Query(default_factory=list, max_length=MOST_CHOSEN)]
LastId = Annotated[
    str, Query(max_length=100, description="The id of the last event that the reader has; the header takes precedence.")
]


def _known(connection: HTTPConnection) -> None:
    """Refuse an unknown query parameter: a filter with a misspelled name would let every event pass."""
    if unknown := sorted(set(connection.query_params) - PARAMETERS):
        fix = f"choose by {', '.join(sorted(PARAMETERS))}"
        raise InputError("A stream of events has no such parameter", given=[one[:80] for one in unknown[:5]], fix=fix)


def _selection(
    connection: HTTPConnection, kind: Kinds, task: Chosen, workflow: Chosen, capability: Chosen, agent: Chosen
) -> EventFilter:
    _known(connection)
    return EventFilter.of(kind=kind, task=task, workflow=workflow, capability=capability, agent=agent)


Selection = Annotated[EventFilter, Depends(_selection)]


class EventsResponse(StreamingResponse):
    """A stream of server-sent events that ends when its reader takes nothing for 30 s."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], status_code: int = 200) -> None:
        super().__init__(content, status_code, headers={"cache-control": "no-store", "x-accel-buffering": "no"})

    async def stream_response(self, send: Send) -> None:
        """Send the stream, and cut it when the reader takes longer than 30 s for a part."""

        async def in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            await super().stream_response(in_time)
        except TimeoutError:
            log.info("A stream of events was cut: its reader took nothing", extra={"within_seconds": SEND_SECONDS})


async def _opened(
    services: Services,
    selection: Selection,
    last_event_id: LastId = "",
    header: Annotated[str, Header(alias="Last-Event-ID", max_length=100)] = "",
) -> AsyncIterator[LiveStream]:
    async with services.feed.stream(selection, header or last_event_id) as stream:
        yield stream


@event_router.get(
    "/events",
    response_class=EventsResponse,
    responses={
        200: {"description": "Events without end.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    },
)
async def stream_events(stream: Annotated[LiveStream, Depends(_opened)]) -> EventsResponse:
    """Follow the events of tasks, workflows, nodes and agents as they happen, each a CloudEvent in JSON.

    A stream that begins with `Last-Event-ID` has all that followed this event, or a `gap`. An event named `gap` says
    that events may be missing: read the state again. One named `end` is the last, and says why.
    """
    return EventsResponse(_as_text(stream))


class NewEvent(ApiRequest):
    """An event to publish: its type, what it is about, its data, and who says it."""

    type: str = Field(min_length=1, max_length=200, description="Words with dots, such as `repo.pushed`.")
    subject: str = Field(default="", max_length=1_000, description="What it is about, such as the id of a task.")
    data: dict[str, Any] = Field(default={})
    by: str = Field(default="", max_length=200, description=f"Who says it. {BY}")


FLEET_EVENTS = frozenset(
    {
        "agent", "approval", "attempt", "breaker", "coordination", "lock", "node", "schedule", "state", "task",
        "trigger", "workflow",
    }
)  # fmt: skip
"""The first words of the events that the fleet itself publishes."""


@event_router.post("/events", status_code=HTTPStatus.ACCEPTED)
async def emit_event(event: NewEvent, services: Services, client: Fleet, who: Who) -> dict[str, str]:
    """Publish an event to all listeners, triggers and webhooks, at most once; return its id."""
    if event.type.partition(".")[0] in FLEET_EVENTS:
        raise InputError(
            "Only the fleet publishes events of this type", given=event.type, fix="choose another first word"
        )
    by = await acting_name(services, who, event.by)
    return {"id": await client.emit_data(event.type, event.data, subject=event.subject, by=by)}


async def _as_text(stream: LiveStream) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % RETRY_MS
    async for frames in stream.batches():
        yield b"".join(map(_sse, frames))


def _sse(frame: LiveFrame) -> bytes:
    if frame.name == PING:
        return b"id: %b\n: ping\n\n" % frame.id.encode()
    name = b"event: %b\n" % frame.name.encode() if frame.name else b""
    return b"%bid: %b\ndata: %b\n\n" % (name, frame.id.encode(), frame.body)


@event_router.websocket("/ws")
async def follow_events(
    socket: WebSocket, services: Services, selection: Selection, last_event_id: LastId = ""
) -> None:
    """Follow the fleet's events over a WebSocket; each message has an `id`, and `event`, `gap`, `ping` or `end`."""
    async with AsyncExitStack() as opening:
        try:
            stream = await opening.enter_async_context(services.feed.stream(selection, last_event_id))
        except CoditectError as error:
            await socket.send_denial_response(error_answer(error))
            return
        await socket.accept()
        writing = asyncio.create_task(_write(socket, stream))
        try:
            await _read_until_closed(socket, writing)
        finally:
            writing.cancel()
            await asyncio.wait([writing])


async def _write(socket: WebSocket, stream: LiveStream) -> None:
    """Send the messages of a live stream over a WebSocket, each within 30 s, and close it after the last one."""
    async for frames in stream.batches():
        for frame in frames:
            text = f'{{"id":"{frame.id}","{frame.name or "event"}":{frame.body.decode()}}}'
            async with asyncio.timeout(SEND_SECONDS):
                await socket.send_text(text)
    await socket.close(GOING_AWAY)


async def _read_until_closed(socket: WebSocket, writing: asyncio.Task[Any]) -> None:
    """Read until the reader has gone, or the writing has ended; what a reader sends is ignored."""
    while not writing.done():
        reading = asyncio.create_task(socket.receive())
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and reading.result()["type"] == "websocket.disconnect":
                return
        finally:
            reading.cancel()
    if not writing.cancelled() and isinstance(error := writing.exception(), Exception):
        reason = "its reader took nothing" if isinstance(error, TimeoutError) else "its reader has gone"
        if not isinstance(error, TimeoutError | WebSocketDisconnect | OSError):
            raise error
        log.info("A WebSocket of events was cut", extra={"reason": reason})


webhook_router = GuardedRouter(changes=Role.ADMIN, tags=["webhooks"])


@with_config(ConfigDict(extra="forbid"))
class WebhookRequest(WebhookOptions, total=False):
    """A webhook: the URL, and the filter of its events; a field of the filter without values takes every event."""

    url: Required[Annotated[str, Field(examples=["https://example.com/hooks/coditect"], max_length=LONGEST_URL)]]


class WebhookDocument(BaseModel):
    """A webhook as answers show it, without its secret: URL, event filter, and whether it is active or why disabled."""

    model_config = ConfigDict(frozen=True)

    name: str
    url: str
    filter: dict[str, list[str]]
    created_ms: int
    state: str = Field(description="`active`, `disabled`, `undelivered` without an API that posts, or `broken`.")
    reason: str = Field(description="Why it is disabled or broken.")

    @classmethod
    def of(cls, webhook: Webhook, **more: Any) -> Self:
        """Return the API's answer for a webhook: its own fields, which have no secret, and those in `more`."""
        return cls.model_validate(asdict(webhook) | more)


class NewWebhook(WebhookDocument):
    """A webhook that was just made, with its secret, which is shown once."""

    secret: str = Field(
        repr=False, description="The secret by which the receiver checks signatures, as Standard Webhooks has it."
    )


@webhook_router.get("/webhooks")
async def list_webhooks(client: Fleet) -> list[WebhookDocument]:
    """List the webhooks with their event filters, and whether each is active, or why it is disabled."""
    return [WebhookDocument.of(webhook) async for webhook in client.webhooks.list()]


@webhook_router.get("/webhooks/{name}")
async def get_webhook(name: str, client: Fleet) -> WebhookDocument:
    """Get a webhook with its event filter."""
    return WebhookDocument.of(await client.webhooks.get(name))


@webhook_router.put("/webhooks/{name}", status_code=HTTPStatus.CREATED)
async def create_webhook(
    name: str, order: Annotated[WebhookRequest, Body()], services: Services, client: Fleet
) -> NewWebhook:
    """Make a webhook, and show its secret this once; later events that fit are posted, signed, to its URL."""
    services.webhooks.check_key()
    conditions: dict[str, Any] = {**order}
    await services.webhooks.hosts.check_receiver(url := check_url(conditions.pop("url")))
    webhook = await client.webhooks.create(name, url, **conditions)
    return NewWebhook.of(webhook, secret=services.webhooks.secret(webhook))


@webhook_router.post("/webhooks/{name}/test")
async def test_webhook(name: str, services: Services, client: Fleet) -> WebhookAttempt:
    """Post an event `webhook.test` to a webhook's URL once, and return how its receiver answered."""
    return await services.webhooks.send_test(await client.webhooks.get(name), SystemClock())


@webhook_router.post("/webhooks/{name}/enable")
async def enable_webhook(name: str, client: Fleet) -> WebhookDocument:
    """Make a disabled webhook active again: events are posted to it, those first that waited."""
    return WebhookDocument.of(await client.webhooks.enable(name))


@webhook_router.post("/webhooks/{name}/disable")
async def disable_webhook(name: str, client: Fleet) -> WebhookDocument:
    """Disable a webhook: nothing is posted to it until it is enabled; of later events the latest 10,000 wait."""
    return WebhookDocument.of(await client.webhooks.disable(name))


@webhook_router.delete("/webhooks/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_webhook(name: str, client: Fleet) -> None:
    """Delete a webhook with the events that wait for it."""
    await client.webhooks.delete(name)


routers = (event_router, webhook_router)
