"""The management API's client, against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coditect.broker.management import Connection, Management, ManagementUnavailable
from coditect.errors import SetupError
from coditect.local.doctor import check_eviction

OVERVIEW = {"rabbitmq_version": "3.10.8"}


@dataclass(slots=True)
class Api:
    """Answers by method and path; a request without an answer hangs."""

    answers: dict[str, tuple[int, object]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        method, path, _ = head.split(" ", 2)
        answer = self.answers.get(f"{method} {path.partition('?')[0]}")
        if answer is not None:
            status, content = answer
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        else:
            await reader.read()
        writer.close()

    async def end(self) -> None:
        for writer in self.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def client(self, path: str = "", *, seconds: float = 10.0) -> Management:
        return Management(f"http://us%40er:pass%2Fword@127.0.0.1:{self.port}{path}", timeout_seconds=seconds)


@asynccontextmanager
async def serving(answers: dict[str, tuple[int, object]]) -> AsyncIterator[Api]:
    api = Api(answers)
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    async with server:
        api.port = server.sockets[0].getsockname()[1]
        yield api
        await api.end()


async def test_connections_are_listed_by_both_names() -> None:
    rows = [{"name": "a -> b", "user_provided_name": "worker-1 consumes"}, {"name": "c -> d"}, "nonsense"]
    async with serving({"GET /api/connections": (200, rows)}) as api:
        found = await api.client().connections()

        assert found == (Connection("a -> b", "worker-1 consumes"), Connection("c -> d", ""))
        assert "Authorization: Basic dXNAZXI6cGFzcy93b3Jk" in api.asked[0], "the decoded user and password"


async def test_connection_is_closed_by_its_whole_name_with_the_reason() -> None:
    async with serving({"DELETE /below/api/connections/a%2F1%20-%3E%20b": (204, b"")}) as api:
        assert await api.client("/below/").close(Connection("a/1 -> b", ""), reason="evicted")

        assert "X-Reason: evicted" in api.asked[0]


async def test_connection_that_is_gone_is_no_error() -> None:
    async with serving({"DELETE /api/connections/a": (404, {"error": "Object Not Found"})}) as api:
        assert not await api.client().close(Connection("a", ""), reason="evicted")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((401, {}), "password"),
        ((404, {}), "address"),
        ((503, {}), "503"),
        ((200, b"<html>"), "not answer"),
        ((200, {"error": "no list"}), "no list"),
        (None, "TimeoutError"),
    ],
)
async def test_every_other_answer_and_none_is_an_error_that_says_why(
    answer: tuple[int, object] | None, reason: str
) -> None:
    async with serving({} if answer is None else {"GET /api/connections": answer}) as api:
        with pytest.raises(ManagementUnavailable, match=reason):
            await api.client(seconds=10.0 if answer else 0.1).connections()


@pytest.mark.parametrize(
    ("overview", "tags", "fix"),
    [(OVERVIEW, ["management"], "set_user_tags"), (OVERVIEW | {"disable_stats": True}, ["administrator"], "unset")],
)
async def test_what_keeps_us_from_closing_connections_is_named(
    overview: dict[str, object], tags: list[str], fix: str
) -> None:
    async with serving({"GET /api/overview": (200, overview), "GET /api/whoami": (200, {"tags": tags})}) as api:
        with pytest.raises(ManagementUnavailable, match=fix):
            await api.client().closing_version()


async def test_doctor_gives_advice_about_the_user_that_the_api_refuses() -> None:
    async with serving({"GET /api/overview": (401, {})}) as api:
        found = await check_eviction(f"http://us:wrong@127.0.0.1:{api.port}")

    assert "password is wrong" in found.detail
    assert found.fix == "correct user, password, host and port in CODITECT_MANAGEMENT_URL"


async def test_version_of_a_broker_that_lets_us() -> None:
    answers = {"GET /api/overview": (200, OVERVIEW), "GET /api/whoami": (200, {"tags": ["administrator"]})}
    async with serving(dict(answers)) as api:
        assert await api.client().closing_version() == "3.10.8"


@pytest.mark.parametrize(
    "url", ["http://one,two:15672", "localhost:15672", "amqp://localhost", "http://", "http://host:port", "http://a..b"]
)
def test_other_urls_are_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(SetupError, match="CODITECT_MANAGEMENT_URL"):
        Management(url)


async def test_private_authority_in_the_url_is_believed_and_no_other(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    request = f"req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate}".split()
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    await asyncio.to_thread(subprocess.run, ["openssl", *request, *named], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    api = Api({"GET /api/overview": (200, OVERVIEW), "GET /api/whoami": (200, {"tags": ["administrator"]})})
    async with await asyncio.start_server(api.serve, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"

        assert await Management(f"{url}?cafile={certificate}").closing_version() == "3.10.8"
        with pytest.raises(ManagementUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await Management(url).closing_version()
        await api.end()


async def test_missing_authority_is_named() -> None:
    check = await check_eviction("https://127.0.0.1:1?cafile=/no/ca.pem")

    assert not check.ok
    assert "cafile=/no/ca.pem" in check.fix


@pytest.mark.parametrize("url", ["https://user:hunter2@host?verify=none", "https://user:hunter2/x@host"])
def test_address_that_weakens_or_hides_something_is_refused(url: str) -> None:
    with pytest.raises(SetupError) as refused:
        Management(url)

    assert "hunter2" not in str(refused.value)
