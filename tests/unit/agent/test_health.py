from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time

import pytest

from coditect.agent import health
from coditect.agent.health import health_server
from coditect.errors import install_command
from coditect.telemetry.metrics import MemoryMetrics, Metric


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


async def test_readiness_tells_how_many_loops_were_started_again() -> None:
    async with health_server(lambda: "", host="127.0.0.1", port=0, restarts=lambda: 3) as port:
        assert (await ask(port, get("/readyz"))).endswith("ready; loops that died and were started again: 3\n")


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_say_meanwhile_that_the_event_loop_stands_still(path: str) -> None:
    answers: list[str] = []

    def probe(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(get(path))
            answers.append(connection.makefile().read())

    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        prober = threading.Thread(target=probe, args=(port,))
        prober.start()
        until = time.monotonic() + 30
        while prober.is_alive() and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop stands still for as long as the probe takes
        assert "200 OK" in await ask(port, get(path))

    assert answers[0].startswith("HTTP/1.1 503")
    assert "stands still" in answers[0]


@pytest.mark.parametrize("request_bytes", [b"nonsense", b"x" * 100_000])
async def test_probe_that_speaks_no_http_gets_no_answer(request_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "READ_SECONDS", 0.1)
    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        with contextlib.suppress(ConnectionError):  # it may be closed while it still sends
            assert await ask(port, request_bytes) == ""
        assert "200 OK" in await ask(port, get("/livez"))


async def test_metrics_are_read_on_the_event_loop_and_served() -> None:
    metrics, threads = MemoryMetrics(), set[threading.Thread]()

    def read() -> float:
        threads.add(threading.current_thread())
        return 5.0

    metrics.observe(Metric("coditect_things", "things"), read)
    async with health_server(lambda: "", host="127.0.0.1", port=0, metrics=metrics) as port:
        answer = await ask(port, get("/metrics"))

    assert answer.startswith("HTTP/1.1 200 OK")
    assert "coditect_things 5.0\n" in answer
    assert threads == {threading.current_thread()}


async def test_metrics_without_their_library_are_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        answer = await ask(port, get("/metrics"))

    assert answer.startswith("HTTP/1.1 501")
    assert install_command("metrics") in answer
