"""A client of RabbitMQ's management API: it lists connections, queues and bindings, and closes connections.

The listed connections are up to 5 s old: the broker gathers them at intervals. A closed connection may stay listed
until its client lets go of it, which a stopped client does not; its deliveries are back in their queues all the same.

Calls are rare and small, so they use the standard library, each in a thread and on a connection of its own.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from coditect.broker.topology import Binding
from coditect.errors import InvalidTask, Retryable, SetupError
from coditect.settings.addresses import check_address, trusting
from coditect.wire import json

MANAGEMENT_CALL_SECONDS = 2.0
CLOSING_TAG = "administrator"
MANAGEMENT_URL_EXAMPLE = "https://user:password@host:15671?cafile=/path/to/ca.pem"
_CORRECT_IT = "correct user, password, host and port in CODITECT_MANAGEMENT_URL"
_REFUSALS = {401: "its user or password is wrong, or it may not do this", 404: "it is not at this address"}


class ManagementUnavailable(Retryable):
    """The retryable error when the management API does not answer, or refuses; the request may have taken effect."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection to the broker, as the management API lists it."""

    name: str
    """The broker's own name of the connection."""
    given_name: str
    """The name that the client gave its connection; empty for none."""


@dataclass(frozen=True, slots=True)
class QueueRates:
    """The publish and delivery rates of one queue, up to 5 s old, and when its oldest ready message was published."""

    published_per_second: float
    delivered_per_second: float
    oldest_ms: int | None
    """When the oldest waiting message was published, in ms since the Unix epoch; None when the broker does not tell."""


class Management:
    """A client of the management API at one URL, e.g. `http://user:password@localhost:15672`, for any event loop.

    The user needs the tag `administrator`, which closing another user's connection takes.
    """

    def __init__(self, url: str, *, timeout_seconds: float = MANAGEMENT_CALL_SECONDS) -> None:
        """Check the URL of the management API, without connecting.

        Raises:
            SetupError: when the URL is no HTTP URL.
        """
        self._at = _address(url)
        self._timeout_seconds = timeout_seconds

    async def connections(self) -> tuple[Connection, ...]:
        """Return the connections to the broker as listed at most 5 s ago; some of them may be closed by now.

        Raises:
            ManagementUnavailable: when the API does not answer or refuses.
        """
        rows = await self._rows("connections?columns=name,user_provided_name", "connections")
        return tuple(
            Connection(str(row["name"]), str(row.get("user_provided_name") or "")) for row in rows if "name" in row
        )

    async def bindings(self, vhost: str) -> frozenset[Binding]:
        """Return all bindings of queues in a virtual host, those to the default exchange included.

        Raises:
            ManagementUnavailable: when the API does not answer or refuses.
        """
        columns = "source,destination,destination_type,routing_key"
        rows = await self._rows(f"bindings/{quote(vhost, safe='')}?columns={columns}", "bindings")
        return frozenset(
            Binding(str(row.get("source")), str(row.get("destination")), str(row.get("routing_key")))
            for row in rows
            if row.get("destination_type") == "queue"
        )

    async def queues(self, vhost: str) -> frozenset[str]:
        """Return the names of all queues in a virtual host.

        Raises:
            ManagementUnavailable: when the API does not answer or refuses.
        """
        rows = await self._queues(vhost, "name", more="&disable_stats=true")
        return frozenset(str(row["name"]) for row in rows)

    async def messages(self, vhost: str, queue: str) -> int | None:
        """Return how many messages, ready or not, a queue held at most 10 s ago; None if that is not known.

        Unsettled messages count, and those that wait to be dead-lettered.

        None when there is no such queue, or when its number is not known yet.

        Raises:
            ManagementUnavailable: when the API does not answer or refuses.
        """
        path = f"queues/{quote(vhost, safe='')}/{quote(queue, safe='')}?columns=messages"
        found = await self._ask("GET", path, may_lack=True)
        number = found.get("messages") if isinstance(found, dict) else None
        return number if isinstance(number, int) else None

    async def queue_rates(self, vhost: str) -> Mapping[str, QueueRates]:
        """Return each queue's publish and delivery rates and oldest message's time in a virtual host, by queue name.

        Raises:
            ManagementUnavailable: when the API does not answer or refuses.
        """
        rates = (f"message_stats.{name}_details.rate" for name in ("publish", "deliver_get"))
        columns = ",".join(("name", "head_message_timestamp", *rates))
        return {str(row["name"]): _rates(row) for row in await self._queues(vhost, columns)}

    async def close(self, connection: Connection, *, reason: str) -> bool:
        """Close a client's connection, whose deliveries return to their queues; return False when it is already gone.

        The broker writes the reason into its log.

        Raises:
            ManagementUnavailable: when the API does not answer or refuses; the connection may be closed all the same.
        """
        path = f"connections/{quote(connection.name, safe='')}"
        return await self._ask("DELETE", path, headers={"X-Reason": reason}, may_lack=True) is not None

    async def closing_version(self) -> str:
        """Return the broker's version after checking that the user may list and close all connections.

        Raises:
            ManagementUnavailable: when the user may not do so, with the fix.
        """
        overview, user = await self._ask("GET", "overview"), await self._ask("GET", "whoami")
        if CLOSING_TAG not in user.get("tags", ()):
            fix = f"rabbitmqctl set_user_tags USER {CLOSING_TAG}"
            raise ManagementUnavailable("Its user may not close other users' connections", fix=fix)
        if overview.get("disable_stats"):
            fix = "unset management_agent.disable_metrics_collector"
            raise ManagementUnavailable("The broker does not list its connections", fix=fix)
        return str(overview.get("rabbitmq_version", "unknown"))

    async def _queues(self, vhost: str, columns: str, *, more: str = "") -> list[dict[str, Any]]:
        rows = await self._rows(f"queues/{quote(vhost, safe='')}?columns={columns}{more}", "queues")
        return [row for row in rows if "name" in row]

    async def _rows(self, path: str, noun: str) -> list[dict[str, Any]]:
        rows = await self._ask("GET", path)
        if not isinstance(rows, list):
            raise ManagementUnavailable(f"The management API lists no {noun}", answer=str(rows)[:200])
        return [row for row in rows if isinstance(row, dict)]

    async def _ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, may_lack: bool = False
    ) -> Any:
        """Call the management API and return its decoded JSON answer, {} if empty; None for a 404 if `may_lack`."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status, body = await asyncio.to_thread(self._exchange, method, path, headers or {})
            if may_lack and status == 404:
                return None
            if status < 400:
                return json.loads(body) if body else {}
        except SetupError as error:
            raise ManagementUnavailable(error.sentence, **error.facts) from error
        except (OSError, HTTPException, InvalidTask) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise ManagementUnavailable("The broker's management API does not answer", reason=reason) from error
        reason = _REFUSALS.get(status, str(status))
        raise ManagementUnavailable("The broker's management API refuses", reason=reason, fix=_CORRECT_IT)

    def _exchange(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Send one HTTP request to the management API, blocking, and return status and body."""
        signed = {"Authorization": _sign_in(self._at), **headers}
        with closing(self._connected()) as connection:
            connection.request(method, f"{self._at.path.rstrip('/')}/api/{path}", headers=signed)
            response = connection.getresponse()
            return response.status, response.read()

    def _connected(self) -> HTTPConnection:
        host, limit = self._at.hostname or "", self._timeout_seconds
        if self._at.scheme == "http":
            return HTTPConnection(host, self._at.port, timeout=limit)
        trusted = trusting(dict(parse_qsl(self._at.query)), "CODITECT_MANAGEMENT_URL")
        return HTTPSConnection(host, self._at.port, timeout=limit, context=trusted)


def _rates(row: Mapping[str, Any]) -> QueueRates:
    counted, oldest_s = row.get("message_stats") or {}, row.get("head_message_timestamp")
    published, delivered = (
        float((counted.get(f"{name}_details") or {}).get("rate") or 0.0) for name in ("publish", "deliver_get")
    )
    return QueueRates(published, delivered, oldest_s * 1_000 if isinstance(oldest_s, int) else None)


def _address(url: str) -> SplitResult:
    sentence = "CODITECT_MANAGEMENT_URL is not a URL such as http://user:password@localhost:15672"
    check_address(url, "CODITECT_MANAGEMENT_URL", example=MANAGEMENT_URL_EXAMPLE, parameters=("cafile",))
    try:
        parts, _ = urlsplit(url), urlsplit(url).port
    except ValueError:
        raise SetupError(sentence) from None  # what it says may hold the password
    if parts.scheme not in ("http", "https") or not parts.hostname or "," in parts.netloc.rpartition("@")[2]:
        raise SetupError(sentence)
    return parts


def _sign_in(parts: SplitResult) -> str:
    words = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {b64encode(words.encode()).decode()}"
