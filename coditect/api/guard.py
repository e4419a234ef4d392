"""The middleware before every route: checks of address, `Host` and `Origin`, HEAD, audit lines and security headers.

A page of another site that a user opens could otherwise reach an API on the user's machine: by a name that resolves to
it (DNS rebinding), or by a form (cross-site request forgery). Answers are never shared with other origins: there is no
CORS.

Here are the bounds, too: the time and size of a head, the size of a body, each caller's rate, and all connections.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from math import ceil
from typing import Any
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from coditect.api.problems import ProblemDocument, answer, problem_of_status
from coditect.model.limits import Rate

AUDIT_LOGGER = "coditect.api.audit"
"""The name of the audit's logger."""
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
ENCODED_SLASH = "\0"
"""What stands in a path for a slash that its sender encoded, which is part of a name; a path has no NUL otherwise."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
REACHED_FIX = "use http://127.0.0.1 or http://localhost, or add the name that the browser shows to CODITECT_API_HOSTS"
_SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}

audit = logging.getLogger(AUDIT_LOGGER)


class RequestGuard:
    """A middleware that refuses unknown hosts, and changes and WebSockets of other sites, and logs passed changes."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        """Guard `app`, which answers to the given host names only; None allows any name."""
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request with 400 or 403, or pass it on; add security headers to its answer and log changes."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if not _is_text(scope):
            fix = "encode names as UTF-8, without NUL"
            refused = problem_of_status(HTTPStatus.BAD_REQUEST, "The address is no UTF-8 text", fix=fix)
            await _refuse(scope, receive, send, refused)
            return
        if len(Headers(scope=scope).getlist("host")) > 1:
            refused = problem_of_status(HTTPStatus.BAD_REQUEST, "The request has more than one Host")
            await _refuse(scope, receive, send, refused)
            return
        if refusal := self._refusal(scope):
            refused = problem_of_status(HTTPStatus.FORBIDDEN, refusal, fix=REACHED_FIX)
            await _refuse(scope, receive, send, refused)
            return
        scope["path"] = _path(scope)
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        if scope["method"] == "HEAD":
            await self._answer_head(scope, receive, send)
            return
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(_secured(message))

        try:
            await self._app(scope, receive, noted)
        finally:
            if scope["method"] not in _SAFE_METHODS:
                _write_line(scope, status)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HEAD as GET without the body; a stream ends after its headers."""
        started = False

        async def without_body(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                await send(_secured(message))
                await send({"type": "http.response.body"})

        async def until_started() -> Message:
            return {"type": "http.disconnect"} if started else await receive()

        await self._app({**scope, "method": "GET"}, until_started, without_body)

    def _refusal(self, scope: Scope) -> str:
        """Return why a request is refused; empty when it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _split(f"//{host}").hostname not in self._hosts:
            return "The API is not reached by this name"
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        if changes and origin is not None and (_split(origin).netloc or None) != host:
            return "A page of another site may change or follow nothing here"
        return ""


def _split(address: str) -> SplitResult:
    """Return the parts of an address: all empty when it cannot be parsed."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_text(scope: Scope) -> bool:
    """Tell whether the path and the query of a request are UTF-8 without NUL, as uvicorn decodes them in any case."""
    try:
        texts = [unquote_to_bytes(scope[part]).decode() for part in ("raw_path", "query_string") if part in scope]
    except UnicodeDecodeError:
        return False
    return not any("\0" in text for text in texts)


def _path(scope: Scope) -> str:
    """Return a request's path with each slash that is part of a name as ENCODED_SLASH: routes would split the name."""
    raw: bytes = scope.get("raw_path") or b""
    if not scope["path"].startswith("/v1/") or b"%2f" not in raw.lower():
        return str(scope["path"])
    return unquote_to_bytes(raw.replace(b"%2f", b"%2F").replace(b"%2F", b"%00")).decode()


def _secured(message: Message) -> Message:
    if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        for name, value in _SAFE_HEADERS.items():
            headers.setdefault(name, value)
    return message


async def _refuse(scope: Scope, receive: Receive, send: Send, refused: ProblemDocument) -> None:
    response = answer(refused)
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await response(scope, receive, send)


def _write_line(scope: Scope, status: int) -> None:
    caller, client = scope["state"].get("caller"), scope.get("client")
    action = scope["state"].get("call", {}).get("method") or getattr(scope.get("route"), "name", None)
    audit.info(
        "A change was asked for",
        extra={
            "caller": getattr(caller, "name", None),
            "role": getattr(caller, "role", None),
            "action": action,
            "method": scope["method"],
            "path": scope["path"].replace(ENCODED_SLASH, "%2F"),
            "status": status or None,
            "remote": client[0] if client else None,
        },
    )


MOST_CALLERS = 10_000
"""The number of callers whose requests are counted; of more, those that were silent longest are forgotten."""


HEAD_SECONDS = 10.0
"""The time limit in which a client must send the head of a request, or the rest of a body that the API skips."""
BODY_PAUSE_SECONDS = 30.0
"""How long a client may pause while it sends a body."""
MAX_HEAD_BYTES = 64 * 1024
"""The largest head (request line and headers) of a request, and the most that may surround the chunks of its body."""
PIECE_BYTES = 8 * 1024
"""How much is parsed before bytes are counted: the parser does not say where in its input a head begins."""
FRAME_BYTES = 16
"""The framing of a chunked body that each of its bytes pays for: its smallest chunks, of one byte, have five."""
MAX_CONNECTIONS = 1_000
"""The limit of open connections; half of the files that the process may open, if that is less."""


class BodyLimit:
    """A middleware that lets a request's body be read only after its caller is admitted, and within bounds.

    FastAPI would read and parse the whole body before it checks any credentials, and Starlette's own limit answers with
    plain text in place of a problem document.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, admit: Callable[[HTTPConnection], Awaitable[None]]) -> None:
        """Await `admit` before the first byte of a body is read; it raises an error for a caller that may not send."""
        self._app = app
        self._max_bytes = max_bytes
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; reading its body fails with 401, 408, 413 or 429 for what is beyond a bound."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        expected = announced != "0" or "transfer-encoding" in headers
        received = 0

        async def bounded() -> Message:
            nonlocal expected, received
            if not expected:
                return await receive()
            if received == 0:
                await self._admit(HTTPConnection(scope))
                if announced.isdecimal() and int(announced) > self._max_bytes:
                    raise self._too_large()
            try:
                async with asyncio.timeout(BODY_PAUSE_SECONDS):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "The body arrived too slowly") from error
            expected = message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, bounded, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {self._max_bytes} bytes: CODITECT_API_BODY_BYTES"
        )


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds that it lacks: a request's head, chunks and trailers, and all connections."""

    _deadline: asyncio.TimerHandle | None = None
    _frame_bytes = 0
    """The bytes of the present head, or, once it is complete, of the chunk extensions and trailers."""
    _piece_bytes = 0
    """How much of the present piece is not part of a body."""
    _in_head = True
    _complete = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Accept the connection, or refuse it with 503 if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > _max_connections():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline of a connection that ended."""
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; refuse a head, chunk extensions or trailers over the bound with 431."""
        while data and not self._is_left():
            size = min(PIECE_BYTES, MAX_HEAD_BYTES + 1 - self._frame_bytes) if self._in_head else PIECE_BYTES
            piece, data = data[:size], data[size:]
            self._piece_bytes = len(piece)
            super().data_received(piece)
            self._frame_bytes += self._piece_bytes
            if self._frame_bytes > MAX_HEAD_BYTES and not self._complete and not self._is_left():
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if self._complete and self._deadline is None and not self._is_left() and self.cycle.response_complete:
            self._set_deadline()  # uvicorn's own ended when something arrived, be it an empty line

    def _is_left(self) -> bool:
        """Tell whether the connection is closing, or has become a WebSocket."""
        return self.transport.is_closing() or self.transport.get_protocol() is not self

    def on_message_begin(self) -> None:
        """Begin a request: its head must be complete in time, else the answer is 408."""
        super().on_message_begin()
        self._in_head, self._complete, self._frame_bytes = True, False, 0
        if self._deadline is None:
            self._set_deadline()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are dropped: they come after all that judges a request by its headers."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer the request."""
        self._in_head, self._frame_bytes = False, 0
        self._clear_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._piece_bytes -= len(body)
        self._frame_bytes = max(0, self._frame_bytes - FRAME_BYTES * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the whole request has arrived."""
        self._complete = True
        self._clear_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End the request; the rest of a body that was not read must arrive in time."""
        super().on_response_complete()
        if not self._complete:
            self._set_deadline()

    def _set_deadline(self) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._refuse, HTTPStatus.REQUEST_TIMEOUT)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: HTTPStatus) -> None:
        """Close the connection, with a status where the client still waits for one."""
        if not self.transport.is_closing():
            if self._may_answer():
                head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                self.transport.write(head.encode())
            self.transport.close()

    def _may_answer(self) -> bool:
        """Tell whether an answer that is sent now belongs to the present request, and not to one before it."""
        if not self.cycle:
            return True
        return self.cycle.response_complete if self._in_head else not (self.cycle.response_started or self.pipeline)


class RefusableWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which logs each refused handshake as an error of the application otherwise."""

    async def send(self, message: Any) -> None:
        """Send a message of the application; the end of a refusal completes the handshake."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True


def _max_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 2)


class RequestRates:
    """The rate limits of one API process: a token bucket for each caller, which other processes do not see."""

    def __init__(self, rate: Rate | None, now: Callable[[], float]) -> None:
        """Limit every caller to `rate`; with None nobody is limited. `now` is a clock in seconds."""
        self._rate = rate
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one request of a caller, and refuse it when the caller is over the rate limit.

        Raises:
            HTTPException: 429 with `Retry-After`, when the caller sends more than the rate.
        """
        if self._rate is None:
            return
        now, per_second, most = self._now(), self._rate.per_second, float(self._rate.most_at_once)
        tokens, since = self._buckets.pop(caller, (most, now))
        tokens = min(most, tokens + (now - since) * per_second)
        taken = tokens >= 1.0
        self._buckets[caller] = (tokens - 1.0 if taken else tokens, now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        if not taken:
            wait = ceil((1.0 - tokens) / per_second)
            sentence = f"A caller has {self._rate.limit} requests: CODITECT_API_RATE"
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, sentence, {"retry-after": str(wait)})
