"""The HTTP connections to a remote A2A agent: to checked addresses, without redirects, with bounded answers.

The SDK asks by httpx. Its transport here resolves a host's name, connects only to an address that the settings allow,
and counts the bytes of each answer. It keeps no cookies.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from coditect.integrations.http.addresses import AllowedHosts
from coditect.integrations.http.failures import AgentRefused, AnswerBroken
from coditect.wire.tasks import MAX_BODY_BYTES

CONNECT_SECONDS = 5.0
MOST_BYTES = MAX_BODY_BYTES
"""The largest answer, and the largest event of a stream: reading data takes microseconds for each number."""
MOST_STREAM_BYTES = 16 * MOST_BYTES
HEADERS = {"user-agent": "coditect", "accept-encoding": "identity"}


class CheckedTransport(httpx.AsyncBaseTransport):
    """An httpx transport that connects to allowed IP addresses only, and limits the size of answers."""

    def __init__(self, hosts: AllowedHosts) -> None:
        self._hosts = hosts
        self._inner = httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the first IP address of its host that takes a connection, and return the response.

        Raises:
            AgentRefused: when the host has no address, or takes no connection; nothing was sent.
            InputError: when an address of the host is not allowed.
            AnswerBroken: when the answer is compressed.
            httpx.TransportError: when the connection breaks afterwards.
        """
        refused: Exception | None = None
        for address in await self._addresses(request.url):
            try:
                response = await self._inner.handle_async_request(_to(address, request))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                refused = error
                continue
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.lower() != "identity":
                await response.aclose()
                raise AnswerBroken(
                    "The answer is compressed, which the request does not accept", encoding=encoding[:50]
                )
            response.headers.pop("set-cookie", None)  # httpx would keep them for all later calls, however many
            assert isinstance(response.stream, httpx.AsyncByteStream)
            streams = response.headers.get("content-type", "").lower().startswith("text/event-stream")
            response.stream = _Bounded(response.stream, MOST_STREAM_BYTES if streams else MOST_BYTES)
            return response
        reason = f"{type(refused).__name__}: {refused}"[:300]
        raise AgentRefused("The remote agent takes no connection", host=request.url.host, reason=reason) from refused

    async def aclose(self) -> None:
        """Close all connections to the remote agent."""
        await self._inner.aclose()

    async def _addresses(self, url: httpx.URL) -> list[str]:
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            return list(dict.fromkeys(await self._hosts.addresses(url.host, port)))
        except (OSError, ValueError) as error:  # a ValueError: no name, or none that DNS knows
            reason = str(error)[:300]
            raise AgentRefused("The remote agent's host cannot be reached", host=url.host, reason=reason) from error


class _Bounded(httpx.AsyncByteStream):
    """The body of an answer, which fails once it, or one of its events, is larger than allowed."""

    def __init__(self, stream: httpx.AsyncByteStream, most_bytes: int) -> None:
        self._stream = stream
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        whole = event = 0
        async for part in self._stream:
            whole += len(part)
            end = max(part.rfind(b"\n\n"), part.rfind(b"\n\r\n"))
            event = event + len(part) if end < 0 else len(part) - end
            if whole > self._most_bytes or event > MOST_BYTES:
                raise AnswerBroken("The answer is too large", most_bytes=MOST_BYTES, most_of_stream=MOST_STREAM_BYTES)
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def checked_client(hosts: AllowedHosts, *, token: str | None = None) -> httpx.AsyncClient:
    """Return an HTTP client for a remote agent, not opened yet; each request has the token, if there is one.

    The caller bounds how long an answer may take.
    """
    return httpx.AsyncClient(
        transport=CheckedTransport(hosts),
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        headers=HEADERS | ({"authorization": f"Bearer {token}"} if token else {}),
        follow_redirects=False,
        trust_env=False,
    )


def _to(address: str, request: httpx.Request) -> httpx.Request:
    """Return a copy of a request for one IP address of its host; a TLS connection serves no other request."""
    headers = httpx.Headers(request.headers)
    if request.url.scheme == "https":
        headers["connection"] = "close"
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )
