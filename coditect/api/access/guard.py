"""The middleware before every route: checks of `Host` and `Origin`, the audit line of a change, and security headers.

A page of another site that a user opens could otherwise reach an API on the user's machine: by a name that resolves to
it (DNS rebinding), or by a form (cross-site request forgery). Answers are never shared with other origins: there is no
CORS.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from coditect.api.problems import answer, problem_of_status

AUDIT = "coditect.api.audit"
"""The name of the audit's logger."""
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
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
        """Refuse a request with 403, or pass it on; over HTTP, add security headers to the answer and log changes."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if refusal := self._refusal(scope):
            await _refuse(scope, receive, send, refusal)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, noted)
        finally:
            if scope["method"] not in _SAFE_METHODS:
                _write_line(scope, status)

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


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: str) -> None:
    fix = "use http://127.0.0.1 or http://localhost, or add the name that the browser shows to CODITECT_API_HOSTS"
    response = answer(problem_of_status(HTTPStatus.FORBIDDEN, refusal, fix=fix))
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
            "path": scope["path"],
            "status": status or None,
            "remote": client[0] if client else None,
        },
    )
