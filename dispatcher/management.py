"""RabbitMQ's management API, as far as the control plane needs it: who is connected, and closing a connection.

What it lists is up to 5 s old: the broker gathers it at intervals. A connection that was closed may stay listed until
its client lets go of it, which a stopped one does not; what it held is back in its queues all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout
from yarl import URL

from coditect.errors import Retryable, SetupError

CALL_SECONDS = 2.0
_REFUSALS = {
    401: "its user or password is wrong, or the user has not the tag `administrator`",
    404: "there is no management API at this address",
}


class ManagementUnavailable(Retryable):
    """The management API did not answer, or not as it should; the facts say why. What was asked may be done."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection to the broker."""

    name: str
    """The broker's own name for it."""
    given_name: str
    """What the client calls it; empty when it says nothing."""


class Management:
    """The API at one address, e.g. `http://user:password@localhost:15672`; an async context manager.

    The user needs the tag `administrator`: closing another's connection takes it.
    """

    def __init__(self, url: str, *, timeout_seconds: float = CALL_SECONDS) -> None:
        """Connects to nothing yet. Raises: SetupError when it is no URL of HTTP."""
        self._api = _api(url)
        self._timeout = ClientTimeout(total=timeout_seconds)
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def connections(self) -> tuple[Connection, ...]:
        """All that stand, as far as the broker has gathered them. Raises: ManagementUnavailable."""
        url = (self._api / "connections").with_query(columns="name,user_provided_name")
        rows = await self._ask("GET", url)
        if not isinstance(rows, list):
            raise ManagementUnavailable("The management API lists no connections", answer=str(rows)[:200])
        return tuple(_connection(row) for row in rows if isinstance(row, dict) and "name" in row)

    async def close(self, connection: Connection, *, reason: str) -> bool:
        """Closes it; what it held unsettled goes back to its queues at once. False when it is not there any more.

        The broker writes the reason into its log. Raises: ManagementUnavailable; it may be closed all the same.
        """
        url = self._api / "connections" / connection.name
        return await self._ask("DELETE", url, headers={"X-Reason": reason}, may_lack=True) is not None

    async def _ask(
        self, method: str, url: URL, *, headers: dict[str, str] | None = None, may_lack: bool = False
    ) -> Any:
        if self._session is None:
            raise ManagementUnavailable("The management API is not open")
        try:
            async with self._session.request(method, url, headers=headers) as response:
                if may_lack and response.status == 404:
                    return None
                _refuse(response)
                return True if response.status == 204 else await response.json()
        except (ClientError, TimeoutError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise ManagementUnavailable("The broker's management API does not answer", reason=reason) from error


def _refuse(response: ClientResponse) -> None:
    if response.status >= 400:
        reason = _REFUSALS.get(response.status, response.reason)
        raise ManagementUnavailable(
            "The broker's management API refuses", status=response.status, reason=reason, fix="CODITECT_MANAGEMENT_URL"
        )


def _connection(row: dict[str, Any]) -> Connection:
    return Connection(str(row["name"]), str(row.get("user_provided_name") or ""))


def _api(text: str) -> URL:
    sentence = "CODITECT_MANAGEMENT_URL is not a URL such as http://user:password@localhost:15672"
    try:
        url = URL(text)
    except ValueError:
        raise SetupError(sentence) from None  # what it says may hold the password
    if url.scheme not in ("http", "https") or not url.host:
        raise SetupError(sentence)
    return url / "api"
