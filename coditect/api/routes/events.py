"""The routes of live events: a stream of server-sent events, and a WebSocket with the same frames."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, WebSocket
from fastapi.responses import StreamingResponse
from starlette.requests import HTTPConnection
from starlette.types import Message, Send
from starlette.websockets import WebSocketDisconnect

from coditect.api.live.stream import PING, LiveStream
from coditect.api.live.window import LiveFrame
from coditect.api.problems import error_answer
from coditect.api.services import Services
from coditect.errors import CoditectError, InputError
from coditect.messaging.event_filter import EventFilter

log = logging.getLogger(__name__)

router = APIRouter(tags=["events"])

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


@router.get(
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


async def _as_text(stream: LiveStream) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % RETRY_MS
    async for frames in stream.batches():
        yield b"".join(map(_sse, frames))


def _sse(frame: LiveFrame) -> bytes:
    if frame.name == PING:
        return b"id: %b\n: ping\n\n" % frame.id.encode()
    name = b"event: %b\n" % frame.name.encode() if frame.name else b""
    return b"%bid: %b\ndata: %b\n\n" % (name, frame.id.encode(), frame.body)


@router.websocket("/ws")
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
