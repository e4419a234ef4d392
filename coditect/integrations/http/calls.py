"""One POST to an HTTP agent: to a checked address, without redirects, with a bounded answer and no retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar

import httpx2

from coditect.errors import InputError
from coditect.integrations.http.addresses import AgentLost, AgentRefused, AllowedHosts, AnswerBroken, said
from coditect.telemetry.metrics import HTTP_AGENT_ATTEMPTS, MemoryMetrics, Metrics

T = TypeVar("T")
HTTP_CONNECT_SECONDS = 5.0
SOCKET_PROBE_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 2.0
"""How long an idle connection is kept: shorter than servers do, since a request on a closed one would be an attempt."""
HTTP_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "coditect",
}
BAD_REQUEST = 400
_OUTCOMES: Mapping[type[Exception], str] = {AgentRefused: "unreachable", AgentLost: "lost", AnswerBroken: "broken"}
NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The HTTP answer of an agent as it came: its status, its body, and the header Retry-After."""

    status: int
    body: bytes
    retry_after: str | None

    def pause_seconds(self, *, limit: float) -> float | None:
        """Return the pause, up to `limit`, that the header Retry-After asks for, in seconds or until a date.

        It is None when there is no such header, or it cannot be read.
        """
        asked = (self.retry_after or "").strip()
        if asked.isascii() and asked.isdigit():
            wanted = float(asked[:12])
        else:
            try:
                wanted = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):  # the latter for a date without a zone
                return None
        return min(max(0.0, wanted), limit)


class AgentCalls:
    """The HTTP client of a bridge; `post` bounds each connect by 5 s, and leaves the time limit to its caller."""

    def __init__(
        self, client: httpx2.AsyncClient, hosts: AllowedHosts, *, most_bytes: int, metrics: Metrics | None = None
    ) -> None:
        self._client = client
        self._hosts = hosts
        self._most_bytes = most_bytes
        outcomes, counted = HTTP_AGENT_ATTEMPTS.labels["outcome"], metrics or MemoryMetrics()
        self._attempts = {outcome: counted.counter(HTTP_AGENT_ATTEMPTS, outcome=outcome) for outcome in outcomes}

    async def post(self, url: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> HttpAnswer:
        """Post a JSON body and return the answer, whatever its status; `headers` override the default ones.

        Raises:
            AgentRefused: when no connection could be made, so that nothing was sent.
            AgentLost: when the connection broke afterwards.
            AnswerBroken: when the answer is compressed, or larger than allowed.
        """
        outcome = "abandoned"  # by a caller whose time is over, or who was canceled
        try:
            answer = await self.request("POST", url, body, headers)
            outcome = "answered" if answer.status < BAD_REQUEST else "refused"
            return answer
        except (AgentRefused, AgentLost, AnswerBroken) as error:
            outcome = _OUTCOMES[type(error)]
            raise
        finally:
            self._attempts[outcome].value += 1

    async def request(
        self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS, *, whole: bool = True
    ) -> HttpAnswer:
        """Send a request by any method, and return the answer, whatever its status; unless `whole`, without its body.

        Raises:
            AgentRefused, AgentLost, AnswerBroken: as `post` does; without the body, never the last.
        """
        async with self._sent(method, url, body, headers) as response:
            answered = await self._body(response) if whole else b""
            return HttpAnswer(response.status_code, answered, response.headers.get("retry-after"))

    async def connect(self, url: str) -> None:
        """Check that a URL's host takes a connection; send nothing.

        Raises:
            AgentRefused: when the host takes no connection.
            TimeoutError: when the host does not answer within two seconds, as one that has too much to do.
        """
        parsed = _parsed(url)
        port = _port(parsed)
        async with asyncio.timeout(SOCKET_PROBE_SECONDS):
            _, writer = await self._first(parsed, lambda address: asyncio.open_connection(address, port), OSError)
        writer.close()

    @asynccontextmanager
    async def _sent(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response]:
        """Send a request to the first address of the URL's host that takes a connection; yield the response."""
        parsed = _parsed(url)

        def send(address: str) -> Awaitable[httpx2.Response]:
            request = self._client.build_request(
                method,
                parsed.copy_with(host=address),
                content=body,
                headers={**HTTP_HEADERS, **headers, **_kept(parsed), "host": parsed.netloc.decode()},
                extensions={"sni_hostname": parsed.host},
            )
            return self._client.send(request, stream=True)

        try:
            response = await self._first(parsed, send, httpx2.ConnectError, httpx2.ConnectTimeout)
            try:
                yield response
            finally:
                await response.aclose()
        except httpx2.HTTPError as lost:
            raise AgentLost("The connection to the agent broke after the request was sent", reason=said(lost)) from lost

    async def _first(self, url: httpx2.URL, send: Callable[[str], Awaitable[T]], *refusals: type[Exception]) -> T:
        try:
            return await self._hosts.first_that_connects(url.host, _port(url), send, *refusals)
        except InputError as error:
            raise AgentRefused("The agent's host cannot be reached", host=url.host, reason=said(error)) from error

    async def _body(self, response: httpx2.Response) -> bytes:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise AnswerBroken("The answer is compressed, which the request does not accept", encoding=encoding[:50])
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._most_bytes:
                fix = "keep the result small, and put large values elsewhere"
                raise AnswerBroken("The answer is too large", most_bytes=self._most_bytes, fix=fix)
        return bytes(body)


@asynccontextmanager
async def agent_calls(
    hosts: AllowedHosts, *, most_bytes: int, metrics: Metrics | None = None
) -> AsyncIterator[AgentCalls]:
    """Open the HTTP client of a bridge; it keeps no cookies, and ignores what the environment sets, such as proxies.

    `metrics` count the outcomes of `post`.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE_SECONDS)
    async with httpx2.AsyncClient(
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # a host's would go to others at its address
        trust_env=False,
        follow_redirects=False,
        limits=limits,
        timeout=httpx2.Timeout(None, connect=HTTP_CONNECT_SECONDS),
    ) as client:
        yield AgentCalls(client, hosts, most_bytes=most_bytes, metrics=metrics)


def _parsed(url: str) -> httpx2.URL:
    try:
        return httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise AgentRefused("The agent's URL is invalid", url=url[:200], reason=said(error)) from error


def _port(url: httpx2.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _kept(url: httpx2.URL) -> Mapping[str, str]:
    """Return the header that keeps a TLS connection from being reused; none for plain HTTP, whose connections are kept.

    The client keeps connections by address, and one with TLS was checked for one name: another name must not get it.
    """
    return {"connection": "close"} if url.scheme == "https" else NO_HEADERS
