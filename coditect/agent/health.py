"""The health server: `/livez`, `/readyz` and `/metrics` over HTTP, for an orchestrator and for Prometheus.

Readiness means that the connections and consumers are there. A thread with its own event loop serves both probes, so
that a probe gets its answer also while the program's event loop is blocked; the state itself is read on the program's
loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from coditect.aio.loop import watched_loop
from coditect.aio.threads import LoopThread
from coditect.errors import SetupError
from coditect.settings.settings import Settings
from coditect.telemetry.metrics import LOOP_LAG, MemoryMetrics, exposition

log = logging.getLogger(__name__)

READ_SECONDS = 2.0
MOST_REQUEST_BYTES = 8_192
TURN_SECONDS = 0.8
"""How long a probe waits for a turn of the program's event loop; an orchestrator waits a second by default."""
STANDS_STILL = "the event loop stands still; the log names the line that blocks it"

Answer = TypeVar("Answer")
Check = Callable[[], str]
"""A check that returns what is wrong, in a few words, or an empty text; called on the program's event loop."""


@dataclass(slots=True)
class Readiness:
    """A program's readiness check, which returns why it takes no work; the program replaces it once it has started."""

    check: Check = lambda: "it is starting"

    def why_not(self) -> str:
        """Return why the program takes no work, in a few words; empty when it takes work."""
        return self.check()


@asynccontextmanager
async def seen_from_outside(
    settings: Settings, readiness: Readiness, metrics: MemoryMetrics, *, restarts: Callable[[], int] = lambda: 0
) -> AsyncIterator[None]:
    """Watch for a blocked event loop inside the block, and serve probes and metrics if the settings name a port.

    It is the outermost block of a program, so that the probes are answered also while the program starts and drains.

    Raises:
        SetupError: when the port cannot be opened.
    """
    with watched_loop(settings.stall_seconds, lag=metrics.histogram(LOOP_LAG).record):
        if (port := settings.health_port) is None:
            yield
            return
        host = settings.health_host
        async with health_server(readiness.why_not, host=host, port=port, restarts=restarts, metrics=metrics) as bound:
            log.info("Health is served", extra={"host": host, "port": bound})
            yield


@asynccontextmanager
async def health_server(
    ready: Check,
    *,
    host: str,
    port: int,
    restarts: Callable[[], int] = lambda: 0,
    metrics: MemoryMetrics | None = None,
) -> AsyncIterator[int]:
    """Serve `/livez`, `/readyz` and `/metrics` inside the block; yield the server's port, any free one for `port=0`.

    `restarts` returns how many loops died and were started again, a number that `/readyz` shows beside its answer.
    `metrics` are those of the program, which `/metrics` shows.

    Raises:
        SetupError: when the port cannot be opened.
    """
    loop = asyncio.get_running_loop()
    bound: Future[int] = Future()
    thread = LoopThread(
        _serving(_Probes(ready, loop, restarts, metrics or MemoryMetrics()), host, port, bound), name="health"
    )
    await asyncio.to_thread(thread.open)
    try:
        yield bound.result()
    finally:
        await asyncio.to_thread(thread.close)


@asynccontextmanager
async def _serving(probes: _Probes, host: str, port: int, bound: Future[int]) -> AsyncIterator[None]:
    """Run the health server on its thread's event loop inside the block; `bound` gets the server's port."""
    try:
        server = await asyncio.start_server(probes.answer, host, port, limit=MOST_REQUEST_BYTES)
    except OSError as error:
        fix = "CODITECT_HEALTH_PORT or --health-port: another one, or 0 for any that is free"
        reason = error.strerror or str(error)
        raise SetupError("The health port cannot be opened", host=host, port=port, reason=reason, fix=fix) from error
    try:
        bound.set_result(int(server.sockets[0].getsockname()[1]))
        yield
    finally:
        server.close()
        await server.wait_closed()


@dataclass(frozen=True, slots=True)
class _Probes:
    """The answers to HTTP probes and metrics requests; both run a function on the program's own event loop."""

    ready: Check
    loop: asyncio.AbstractEventLoop
    restarts: Callable[[], int]
    metrics: MemoryMetrics

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one HTTP request of a connection, if request and answer take at most 2 s; close the connection."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._response(request))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # a probe that hangs or sends no HTTP gets no answer
        finally:
            writer.close()

    async def _response(self, request: bytes) -> bytes:
        path = request.split(b" ", 2)[1:2]
        if path == [b"/livez"]:
            return _http(await self._wrong(lambda: ""), well="alive")
        if path == [b"/readyz"]:
            died = self.restarts()
            well = f"ready; loops that died and were started again: {died}" if died else "ready"
            return _http(await self._wrong(self.ready), well=well)
        if path == [b"/metrics"]:
            return await self._exposition()
        return _text("404 Not Found", "try /livez, /readyz or /metrics")

    async def _exposition(self) -> bytes:
        """Return the program's metrics as HTTP response: 503 if its loop is blocked, 501 without prometheus-client."""
        samples = await self._asked(self.metrics.samples)
        if samples is None:
            return _text("503 Service Unavailable", STANDS_STILL)
        try:
            body, kind = exposition(self.metrics.declared, samples)
        except SetupError as error:
            return _text("501 Not Implemented", str(error))
        return _answer("200 OK", body, kind)

    async def _wrong(self, check: Check) -> str:
        """Run a check on the program's event loop; return the fault it finds, or that the loop is blocked, else ""."""
        answer = await self._asked(check)
        return STANDS_STILL if answer is None else answer

    async def _asked(self, read: Callable[[], Answer]) -> Answer | None:
        """Return what a function returns on the program's event loop; None if that is closed, or blocked for 0.8 s."""
        answer: Future[Answer] = Future()

        def tell() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(read())
                except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                    answer.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(tell)
            async with asyncio.timeout(TURN_SECONDS):
                return await asyncio.wrap_future(answer)
        except (TimeoutError, RuntimeError):  # RuntimeError: the loop is closed
            return None


def _http(wrong: str, *, well: str) -> bytes:
    return _text("503 Service Unavailable", wrong) if wrong else _text("200 OK", well)


def _text(status: str, text: str) -> bytes:
    return _answer(status, text.encode() + b"\n", "text/plain")


def _answer(status: str, body: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
