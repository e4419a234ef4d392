"""What a request may be: names in its path, HEAD, and the bounds of its head, its body and all connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from httpx2 import AsyncClient

from coditect.api import guard
from coditect.api.access import KeyFile, Role
from coditect.api.bearer import BearerAccess
from coditect.model.limits import Rate
from coditect.settings.settings import ApiSettings
from coditect.testing import TestFleet
from tests.api import api_of, services_of, serving

MADE = "2026-01-01T00:00:00+00:00"


@asynccontextmanager
async def connection(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(address).port)
    try:
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def served(*, access: BearerAccess | None = None, settings: ApiSettings | None = None) -> AsyncIterator[str]:
    """The API on a real socket: its address."""
    async with (
        TestFleet() as fleet,
        services_of(fleet.server, fleet.registry, fleet.client, access=access) as services,
        serving(services, settings) as (address, _),
    ):
        yield address


async def end_of(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 20)


@pytest.mark.parametrize("name", ["a/b", "a/history", "/", "a%2Fb", "ä/%"])
async def test_key_may_have_slashes(api: AsyncClient, name: str) -> None:
    path = f"/v1/state/team%2Fblue/{name.replace('%', '%25').replace('/', '%2F')}"
    written, value, history = await api.put(path, json=7), await api.get(path), await api.get(f"{path}/history")
    keys = await api.get("/v1/state/team%2Fblue")

    assert (written.status_code, value.json()["key"], value.json()["value"]) == (200, name, 7)
    assert [entry["key"] for entry in (*history.json(), *keys.json())] == [name, name]


async def test_slash_need_not_be_encoded_in_a_key(api: AsyncClient) -> None:
    await api.put("/v1/state/team/a/b", json=7)

    assert (await api.get("/v1/state/team/a%2Fb")).json()["value"] == 7


async def test_breaker_may_have_a_slash_in_its_name(api: AsyncClient) -> None:
    opened = await api.post("/v1/breakers/mail%2Feu/open", json={})

    shown = await api.get("/v1/breakers/mail%2Feu")

    assert opened.status_code == 200
    assert shown.json()["state"]["name"] == "mail/eu"


@pytest.mark.parametrize("address", ["/v1/state/team/%FF", "/v1/state/team/a%00b", "/v1/tasks/%ED%A0%80", "/%00",
                                     "/v1/locks?resource=%FF", "/v1/locks?resource=%00"])  # fmt: skip
async def test_address_is_text(api: AsyncClient, address: str) -> None:
    answer = await api.get(address)

    assert (answer.status_code, answer.json()["detail"]) == (400, "The address is no UTF-8 text")


async def test_encoded_slash_is_part_of_a_name_that_nothing_has(api: AsyncClient) -> None:
    assert (await api.get("/v1/agents/no%2Fsuch")).status_code == 404


@pytest.mark.parametrize("path", ["/v1/agents", "/livez", "/openapi.json", "/v1/events"])
async def test_head_is_answered_as_get_without_the_body(path: str) -> None:
    async with served() as address, AsyncClient(base_url=address) as http:
        head = await http.head(path)
        async with http.stream("GET", path) as get:
            pass

    assert (head.status_code, head.content) == (200, b"")
    expected = {name: value for name, value in get.headers.items() if name not in {"date", "transfer-encoding"}}
    assert {name: head.headers[name] for name in expected} == expected


async def test_path_with_get_allows_head(api: AsyncClient) -> None:
    assert (await api.put("/v1/queues")).headers["allow"] == "GET, HEAD"


async def test_body_of_a_caller_without_a_key_is_not_read(tmp_path: Path) -> None:
    async with served(access=BearerAccess([KeyFile(tmp_path / "keys")])) as address:
        for path in ("/v1/tasks", "/register"):
            async with connection(address) as (reader, writer):
                writer.write(
                    f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                    "content-length: 1000\r\n\r\n".encode()
                )
                answer = await asyncio.wait_for(reader.readline(), 10)

            assert answer.startswith(b"HTTP/1.1 401"), path


async def test_rate_is_checked_before_a_body_is_parsed(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys")
    key = file.create("ada", Role.OPERATOR, made_at=MADE)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with TestFleet() as fleet, api_of(fleet, access=BearerAccess([file]), rate=Rate("1/h")) as http:
        answers = [await http.post("/v1/tasks", content=b"{", headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [422, 429]


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: local"], ids=["nothing", "half a head"])
async def test_head_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.3)
    async with served() as address, connection(address) as (reader, writer):
        writer.write(sent)

        assert (await end_of(reader)).startswith(b"HTTP/1.1 408")


async def test_second_head_of_a_connection_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.3)
    async with served() as address, connection(address) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: lo")

        assert b"HTTP/1.1 408" in await end_of(reader)


async def test_empty_line_keeps_no_idle_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.3)
    async with served() as address, connection(address) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"}"), 10)
        writer.write(b"\r\n")

        assert await end_of(reader) == b""


async def test_head_has_a_bound() -> None:
    async with served() as address, connection(address) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nx-long: ")
        writer.write(b"a" * guard.MAX_HEAD_BYTES)

        assert (await end_of(reader)).startswith(b"HTTP/1.1 431")


async def test_bound_of_a_head_counts_each_byte_of_a_segment() -> None:
    start, end = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-long: ", b"\r\n\r\n"
    answers = []
    for size in (guard.MAX_HEAD_BYTES, guard.MAX_HEAD_BYTES + 2):
        async with served() as address, connection(address) as (reader, writer):
            writer.write(start + b"a" * (size - len(start + end)) + end)
            answers.append(await asyncio.wait_for(reader.readline(), 10))

    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200", b"HTTP/1.1 431"]


CHUNKED = (
    b"PUT /v1/state/team/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"2\r\n{}\r\n0\r\n", b"h: " + b"a" * 1_000 + b"\r\n"),
        (b"2;x=", b"a" * 1_000),
        (b"", b"1;x=" + b"a" * 1_000 + b"\r\n \r\n"),
    ],
    ids=["trailers", "one extension", "many extensions"],
)
async def test_what_surrounds_the_chunks_of_a_body_has_a_bound(begun: bytes, more: bytes) -> None:
    async with served() as address, connection(address) as (reader, writer):
        writer.write(CHUNKED + begun + more * 100)

        assert (await end_of(reader)).startswith(b"HTTP/1.1 431")


async def test_body_may_come_in_many_small_chunks() -> None:
    body = b'"' + b"a" * 50_000 + b'"'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    async with served() as address, connection(address) as (reader, writer):
        writer.write(CHUNKED + chunks + b"0\r\nx-checksum: 1\r\n\r\n")

        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")


async def test_large_body_before_a_begun_head_is_answered() -> None:
    body = b'"' + b"a" * 100_000 + b'"'
    head = CHUNKED.replace(b"transfer-encoding: chunked", b"content-length: %d" % len(body))
    async with served() as address, connection(address) as (reader, writer):
        writer.write(head + body + b"GET /livez HTTP/1.1\r\nho")
        answer = await asyncio.wait_for(reader.readline(), 10)
        writer.write(b"st: localhost\r\nconnection: close\r\n\r\n")
        rest = await end_of(reader)

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 200" in rest


async def test_refused_head_is_no_answer_to_the_request_before_it() -> None:
    async with served() as address, connection(address) as (reader, writer):
        writer.write(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.write(b"GET / HTTP/1.1\r\nx-long: " + b"a" * guard.MAX_HEAD_BYTES)

        assert b"431" not in await end_of(reader)


async def test_trailers_of_a_body_are_no_headers() -> None:
    async with served() as address, connection(address) as (reader, writer):
        writer.write(CHUNKED + b"1\r\n7\r\n0\r\norigin: http://evil.example\r\n\r\n")

        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")


async def test_request_has_one_host() -> None:
    async with served() as address, connection(address) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = await end_of(reader)

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"The request has more than one Host" in answer


async def test_body_must_keep_arriving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_PAUSE_SECONDS", 0.3)
    async with served() as address, connection(address) as (reader, writer):
        writer.write(
            b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 9\r\n\r\n{"
        )

        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408")


async def test_rest_of_a_body_that_is_not_read_must_arrive_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.3)
    async with (
        served(access=BearerAccess([KeyFile(tmp_path / "keys")])) as address,
        connection(address) as (reader, writer),
    ):
        writer.write(b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")

        assert (await end_of(reader)).startswith(b"HTTP/1.1 401")


async def test_connections_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_CONNECTIONS", 2)
    async with served() as address, connection(address), connection(address), connection(address) as (reader, _):
        refused = await end_of(reader)

    assert refused.startswith(b"HTTP/1.1 503")
