"""The middleware before every route: checks of address, `Host` and `Origin`, HEAD, audit lines and security headers.

A page of another site that a user opens could otherwise reach an API on the user's machine: by a name that resolves to
it (DNS rebinding), or by a form (cross-site request forgery). Answers are never shared with other origins: there is no
CORS.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import unquote_to_bytes, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from coditect.api.problems import ProblemDocument, answer, problem_of_status

AUDIT = "coditect.api.audit"
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

audit = logging.getLogger(AUDIT)


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
        if self._hosts is not None and _name(f"//{host}") not in self._hosts:
            return "The API is not reached by this name"
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        if changes and origin is not None and _place(origin) != host:
            return "A page of another site may change or follow nothing here"
        return ""


def _name(address: str) -> str | None:
    """Return the host name in an address; None when the address has none, or cannot be parsed."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _place(origin: str) -> str | None:
    """Return host and port of the header `Origin`; None when it has none, such as `null`."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


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
