"""The bounds of requests: the size of a body, and the rate at which one caller may send requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from math import ceil

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coditect.model.limits.rate import Rate

MOST_CALLERS = 10_000
"""The number of callers whose requests are counted; of more, those that were silent longest are forgotten."""


class BodyLimit:
    """A middleware that refuses a body over a number of bytes, before reading it if the header Content-Length says so.

    Starlette's own answers with plain text in place of a problem document.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; reading its body fails with status 413 when it is, or is announced as, over the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        read = 0

        async def counted() -> Message:
            nonlocal read
            if announced.isdecimal() and int(announced) > self._most_bytes:
                raise self._too_large()
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {self._most_bytes} bytes: CODITECT_API_BODY_BYTES"
        )


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
