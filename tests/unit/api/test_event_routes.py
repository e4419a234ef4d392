"""The streams of events over real sockets: server-sent events and WebSockets."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from websockets import CloseCode
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response as HandshakeResponse

from coditect.api.access import Access
from coditect.api.bearer import BearerAccess
from coditect.api.live import LiveFeed
from coditect.api.program import AnnouncedServer
from coditect.api.routes import events
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology
from coditect.client.client import Client
from coditect.model.message import Event
from coditect.registry.memory import MemoryRegistry
from coditect.wire import routing
from coditect.wire.events import event_message
from tests.api import services_of, serving
from tests.support import eventually, patient


@dataclass(slots=True)
class Stage:
    """The API on a socket, over the broker's twin."""

    address: str
    broker: MemoryBroker
    feed: LiveFeed
    server: AnnouncedServer
    http: AsyncClient

    async def publish(self, number: int, type_: str = "task.completed") -> None:
        event = Event(type_, "/agents/a-1", f"p-{number}", 1_000, f"t{number}")
        await self.broker.publish(event_message(event), exchange=routing.EVENTS, routing_key=type_)

    @asynccontextmanager
    async def follow(self, query: str = "", last_id: str = "") -> AsyncIterator[SseReader]:
        headers = {"last-event-id": last_id} if last_id else {}
        async with self.http.stream("GET", f"{self.address}/v1/events{query}", headers=headers) as response:
            yield SseReader(response)


class SseReader:
    """The blocks of a stream as a browser understands them."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self.last_id = ""
        self._lines = response.aiter_lines()

    async def block(self) -> dict[str, str]:
        """The fields of the next block; a comment is the field ""."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            async for line in self._lines:
                if not line:
                    break
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
        self.last_id = fields.get("id", self.last_id)
        return fields

    async def event(self) -> tuple[str, Any]:
        """The name and the data of the next event, past pings and the like."""
        while "data" not in (block := await self.block()):
            assert block, "the stream has ended"
        return block.get("event", "message"), json.loads(block["data"])

    async def opened(self) -> None:
        while "id" not in await self.block():
            pass


@asynccontextmanager
async def stage(access: Access | None = None) -> AsyncIterator[Stage]:
    server, registry = MemoryServer(), MemoryRegistry()
    async with (
        MemoryBroker(server) as broker,
        Client(broker, registry) as client,
        services_of(server, registry, client, access=access) as services,
        AsyncClient(timeout=30, trust_env=False) as http,
        serving(services) as (address, running),
    ):
        await broker.declare(base_topology())
        yield Stage(address, broker, services.feed, running, http)


async def test_stream_has_the_events_as_they_happen() -> None:
    async with stage() as at, at.follow("?kind=task") as reader:
        await reader.opened()
        await at.publish(1, "node.ready")
        await at.publish(2)

        name, data = await reader.event()

    assert reader.response.headers["content-type"].startswith("text/event-stream")
    assert reader.response.headers["cache-control"] == "no-store"
    assert (name, data["type"], data["subject"], data["specversion"]) == ("message", "task.completed", "t2", "1.0")


async def test_stream_goes_on_after_the_last_event_id() -> None:
    async with stage() as at:
        async with at.follow() as reader:
            await reader.opened()
            await at.publish(1)
            await reader.event()
        await at.publish(2)
        await eventually(lambda: at.feed.streams == 0)

        async with at.follow(last_id=reader.last_id) as again, at.follow(f"?last_event_id={reader.last_id}") as other:
            subjects = [(await one.event())[1]["subject"] for one in (again, other)]

    assert subjects == ["t2", "t2"]


async def test_stream_of_another_process_begins_with_a_gap() -> None:
    async with stage() as at, at.follow(last_id="elsewhere-7") as reader:
        name, data = await reader.event()

    assert name == "gap"
    assert "read the state again" in data["advice"]


async def test_stop_of_the_server_ends_open_streams_within_two_seconds() -> None:
    async with stage() as at, at.follow() as reader, connect(ws(at)) as socket:
        await reader.opened()
        await receive(socket, "ping")
        began = time.monotonic()
        at.server.should_exit = True

        name, data = await reader.event()
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        await eventually(lambda: not at.server.server_state.connections)
        took = time.monotonic() - began

    assert (name, data["reason"]) == ("end", "the server stops")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART
    assert took < patient(2.0)


async def test_reader_that_has_gone_leaves_no_stream() -> None:
    async with stage() as at:
        async with at.follow() as reader, connect(ws(at)) as socket:
            await reader.opened()
            await receive(socket, "ping")
            assert at.feed.streams == 2

        await eventually(lambda: at.feed.streams == 0)


async def test_reader_that_takes_nothing_is_cut_and_the_others_feel_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SEND_SECONDS", 1.0)
    async with stage() as at, at.follow() as quick:
        await quick.opened()
        host, port = at.address.removeprefix("http://").split(":")
        _, stuck = await asyncio.open_connection(host, int(port), limit=1)
        stuck.write(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await eventually(lambda: at.feed.streams == 2)
        note = {"note": "x" * 50_000}
        number = 0
        while at.feed.streams == 2:  # until the stuck one is cut, the quick one has each event
            number += 1
            at.feed.take(Event("task.progress", "/agents/a-1", f"p-{number}", 1_000, f"t{number}", note))
            assert (await quick.event())[1]["subject"] == f"t{number}"
        stuck.close()

    assert number > 10


async def test_websocket_has_the_same_events_and_goes_on_after_an_id() -> None:
    async with stage() as at:
        async with connect(ws(at, "?kind=task.completed")) as socket:
            first = await receive(socket, "ping")
            await socket.send("what a reader sends is ignored")
            await at.publish(1)
            message = await receive(socket, "event")
        await at.publish(2)

        async with connect(ws(at, f"?last_event_id={message['id']}")) as again:
            following = await receive(again, "event")

    assert first["id"].endswith("-0")
    assert (message["event"]["subject"], following["event"]["subject"]) == ("t1", "t2")


async def test_websocket_of_a_page_of_another_site_is_refused() -> None:
    async with stage() as at:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(ws(at), origin="https://evil.example"):  # type: ignore[arg-type]
                pass
        async with connect(ws(at), origin=at.address) as socket:  # type: ignore[arg-type]
            await receive(socket, "ping")

    assert refused.value.response.status_code == 403
    assert b"another site" in (refused.value.response.body or b"")


async def test_a_parameter_that_is_none_is_refused_by_stream_and_websocket() -> None:
    async with stage() as at:
        answer = await at.http.get(f"{at.address}/v1/events?kind=task&types=node")
        refused = await refusal(ws(at, "?types=node"))
        too_long = await refusal(ws(at, f"?last_event_id={'1' * 101}"))

    assert (answer.status_code, refused.status_code, too_long.status_code) == (422, 422, 422)
    assert answer.json()["facts"]["given"] == ["types"]
    assert "kind" in json.loads(refused.body or b"")["fix"]
    assert "last_event_id" in json.loads(too_long.body or b"")["mistakes"][0]["at"]


async def test_a_websocket_without_a_key_is_answered_as_a_request_is() -> None:
    async with stage(access=BearerAccess([])) as at:
        refused = await refusal(ws(at))

    assert refused.status_code == 401
    assert "Authorization: Bearer" in json.loads(refused.body or b"")["fix"]


@pytest.mark.parametrize(
    ("query", "origin", "status"),
    [
        ("", None, 401),
        ("?types=node", None, 422),
        (f"?last_event_id={'1' * 101}", None, 422),
        ("?kind=%FF", None, 400),
        ("", "https://evil.example", 403),
    ],
)
async def test_a_refused_websocket_is_no_error_of_the_api(
    query: str, origin: str | None, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(access=BearerAccess([]) if status == 401 else None) as at:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(ws(at, query), origin=origin):  # type: ignore[arg-type]
                pass

    assert refused.value.response.status_code == status
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def refusal(address: str) -> HandshakeResponse:
    """The answer to a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(address):
            pass
    return refused.value.response


async def test_streams_are_refused_with_a_problem_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage() as at:
        monkeypatch.setattr(at.feed, "_most_streams", 0)
        answer = await at.http.get(f"{at.address}/v1/events")
        with pytest.raises(InvalidStatus) as refused:
            async with connect(ws(at)):
                pass

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["retryable"]
    assert refused.value.response.status_code == 503


def ws(at: Stage, query: str = "") -> str:
    return f"{at.address.replace('http', 'ws', 1)}/v1/ws{query}"


async def receive(socket: ClientConnection, name: str) -> dict[str, Any]:
    """The next message of a name."""
    async with asyncio.timeout(20):
        try:
            while name not in (message := json.loads(await socket.recv())):
                pass
        except ConnectionClosed as closed:
            raise AssertionError(f"closed before {name}") from closed
    return dict(message)
