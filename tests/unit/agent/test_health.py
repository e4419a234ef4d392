from __future__ import annotations

import asyncio
import contextlib

import pytest

from coditect.agent import health
from coditect.agent.health import health_server


async def ask(port: int, request: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


async def test_liveness_and_readiness_are_told_apart() -> None:
    wrong = ""
    async with health_server(lambda: wrong, host="127.0.0.1", port=0) as port:
        assert "200 OK" in await ask(port, get("/readyz"))
        wrong = "no broker"

        assert (await ask(port, get("/readyz"))).startswith("HTTP/1.1 503")
        assert "no broker" in await ask(port, get("/readyz"))
        assert "200 OK" in await ask(port, get("/livez"))
        assert "404" in await ask(port, get("/other"))


@pytest.mark.parametrize("request_bytes", [b"nonsense", b"x" * 100_000])
async def test_probe_that_speaks_no_http_gets_no_answer(request_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "READ_SECONDS", 0.1)
    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        with contextlib.suppress(ConnectionError):  # it may be closed while it still sends
            assert await ask(port, request_bytes) == ""
        assert "200 OK" in await ask(port, get("/livez"))
