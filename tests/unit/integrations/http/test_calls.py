"""What a call sends, and to where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest

from coditect.integrations.http.addresses import AgentLost, AgentRefused, AllowedHosts, AnswerBroken
from coditect.integrations.http.calls import AgentCalls, agent_calls
from coditect.model.message import Message
from coditect.telemetry.metrics import MemoryMetrics
from coditect.wire import routing
from tests.support import eventually
from tests.unit.integrations.http.stage import HOSTS, Stage, stub_agent


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that notes what arrives, answers with bytes and closes the connection."""
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        yield server.sockets[0].getsockname()[1], arrived


async def test_the_request_goes_to_the_checked_address_with_the_host_of_the_url() -> None:
    answer = b"HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nno"
    async with raw_server(answer) as (port, arrived), agent_calls(HOSTS, most_bytes=100) as calls:
        got = await calls.post(f"http://localhost:{port}/below/agent-request", b"{}")

    head = arrived[0].decode().lower()
    assert (got.status, got.body, got.retry_after) == (429, b"no", "7")
    assert head.startswith("post /below/agent-request http/1.1")
    assert f"host: localhost:{port}\r\n" in head
    assert head.count("\r\nhost:") == 1
    assert "accept-encoding: identity" in head
    assert "content-type: application/json" in head


async def test_a_request_of_any_method_goes_the_same_way() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"
    async with raw_server(answer) as (port, arrived), agent_calls(HOSTS, most_bytes=100) as calls:
        got = await calls.request("GET", f"http://localhost:{port}/repos?page=2", headers={"authorization": "token x"})

    head = arrived[0].decode().lower()
    assert (got.status, got.body) == (404, b"no")
    assert head.startswith("get /repos?page=2 http/1.1")
    assert "authorization: token x\r\n" in head


async def test_no_cookie_of_an_answer_is_kept_for_later_requests() -> None:
    answer = b"HTTP/1.1 204 No Content\r\nset-cookie: a=b\r\n\r\n"
    async with raw_server(answer) as (port, arrived), agent_calls(HOSTS, most_bytes=100) as calls:
        for _ in range(2):
            await calls.post(f"http://localhost:{port}/agent-request", b"{}")

    assert [b"cookie" in head.lower() for head in arrived] == [False, False]


async def test_a_connection_that_ends_without_an_answer_is_an_agent_that_is_lost() -> None:
    async with raw_server(b"") as (port, _), agent_calls(HOSTS, most_bytes=100) as calls:
        with pytest.raises(AgentLost):
            await calls.post(f"http://127.0.0.1:{port}/agent-request", b"{}")


async def test_a_host_that_is_not_allowed_any_more_is_not_connected_to() -> None:
    async with raw_server(b"") as (port, arrived), agent_calls(HOSTS, most_bytes=100) as calls:
        strict = type(calls)(calls._client, type(HOSTS)(("*",)), most_bytes=100)
        with pytest.raises(AgentRefused, match="CODITECT_PRIVATE_ADDRESSES=http"):
            await strict.post(f"http://127.0.0.1:{port}/agent-request", b"{}")
        with pytest.raises(AgentRefused, match="CODITECT_PRIVATE_ADDRESSES=http"):
            await strict.connect(f"http://127.0.0.1:{port}")

    assert arrived == []


async def test_a_port_where_nothing_listens_refuses() -> None:
    async with raw_server(b"") as (port, _):
        pass
    async with agent_calls(HOSTS, most_bytes=100) as calls:
        with pytest.raises(AgentRefused):
            await calls.post(f"http://127.0.0.1:{port}/agent-request", b"{}")
        with pytest.raises(AgentRefused):
            await calls.connect(f"http://127.0.0.1:{port}")


async def test_posts_are_counted_by_their_outcome() -> None:
    metrics = MemoryMetrics()
    head = b"HTTP/1.1 %s\r\ncontent-length: 2\r\n%s\r\nno"
    answers = (head % (b"200 OK", b""), head % (b"500 No", b""), head % (b"200 OK", b"content-encoding: gzip\r\n"), b"")
    async with agent_calls(HOSTS, most_bytes=100, metrics=metrics) as calls:
        for answer in answers:
            async with raw_server(answer) as (port, _):
                with suppress(AgentLost, AnswerBroken):
                    await calls.post(f"http://127.0.0.1:{port}/agent-request", b"{}")
        with pytest.raises(AgentRefused):
            await calls.post(f"http://127.0.0.1:{port}/agent-request", b"{}")

    counted = {labels[0][1]: value for (_, labels), value in metrics.samples().items()}
    assert counted == {"answered": 1, "refused": 1, "broken": 1, "lost": 1, "unreachable": 1, "abandoned": 0}


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "\u2603.net", "[v1.x]"])
async def test_a_url_whose_host_is_no_name_refuses_as_a_host_that_is_away(host: str) -> None:
    async with agent_calls(AllowedHosts(("*",), private=True), most_bytes=100) as calls:
        with pytest.raises(AgentRefused):
            await calls.post(f"http://{host}/agent-request", b"{}")
        with pytest.raises(AgentRefused):
            await calls.connect(f"http://{host}/")


@pytest.mark.parametrize(("scheme", "ends"), [("https", True), ("http", False)])
async def test_a_connection_that_was_checked_for_one_name_is_not_kept_for_another(scheme: str, ends: bool) -> None:
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(204, stream=httpx2.ByteStream(b""))

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        await AgentCalls(client, HOSTS, most_bytes=100).post(f"{scheme}://localhost/agent-request", b"{}")

    assert (asked[0].headers.get("connection") == "close") is ends
    assert asked[0].extensions["sni_hostname"] == "localhost"


async def test_the_trace_of_a_task_goes_to_the_agent_without_its_baggage(stage: Stage) -> None:
    with stub_agent() as agent:
        await stage.register(agent.url, "words.count")
        trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}
        message = Message(b"null", {**trace, "baggage": "tenant=blue"}, message_id="traced")
        await (await stage.scene.broker()).publish(message, exchange=routing.TASKS, routing_key="words.count.p1")
        await eventually(lambda: agent.events)

        (headers,) = agent.headers

    assert {name: headers[name] for name in trace} == trace
    assert "baggage" not in headers
