"""`/livez` and `/readyz` over HTTP, for an orchestrator. Readiness tells the truth: connections and consumers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

READ_SECONDS = 2.0
MOST_REQUEST_BYTES = 8_192

Check = Callable[[], str]
"""What is wrong, in a few words; empty when nothing is."""


@asynccontextmanager
async def health_server(ready: Check, *, host: str, port: int) -> AsyncIterator[int]:
    """Serves both until the context is left; gives the port that it listens on (0 picks one)."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(request, ready))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # a probe that hangs or sends no HTTP gets no answer
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, port, limit=MOST_REQUEST_BYTES)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()


def _response(request: bytes, ready: Check) -> bytes:
    path = request.split(b" ", 2)[1:2]
    if path == [b"/livez"]:
        status, text = "200 OK", "alive"
    elif path == [b"/readyz"]:
        wrong = ready()
        status, text = ("503 Service Unavailable", wrong) if wrong else ("200 OK", "ready")
    else:
        status, text = "404 Not Found", "try /livez or /readyz"
    body = text.encode() + b"\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
