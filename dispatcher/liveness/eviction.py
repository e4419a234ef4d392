"""The eviction of a dead, frozen or cut-off process, by closing its connections at the broker.

A broker redelivers a consumer's unsettled deliveries when the connection ends. A killed process's connection ends at
once; a frozen one's ends when the broker misses its heartbeats, after 10 to 15 s. Eviction closes it now.

A process is known by the names of its connections (`broker.port.connection_names`): an agent's id, a dispatcher's owner
name. Both belong to one life of a process, so no other process is ever evicted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from coditect.broker.management import Connection, Management, ManagementUnavailable
from coditect.broker.port import connection_names
from coditect.errors import CoditectError

log = logging.getLogger(__name__)

REASON = "evicted: the control plane took it for dead"
OWNER_SECONDS = 3.0
LISTED_SECONDS = 5.5
"""The longest time after which the broker's management API lists a new connection."""


class Evictor(Protocol):
    """The port that closes the connections of a process at the broker, lists the queues there, and counts messages."""

    async def evict(self, process: str) -> int:
        """Close a process's connections at the broker, and return how many were closed; idempotent.

        A connection that was opened within the last 5 s may be missed: call again.

        Raises:
            Retryable: when the connections cannot be closed now.
        """

    async def queues(self) -> frozenset[str]:
        """Return the names of all queues at the broker.

        Raises:
            Retryable: when the queues cannot be listed now.
        """

    async def messages(self, queue: str) -> int | None:
        """Return the number of all messages in a queue, read up to 10 s ago, including those that await dead-lettering.

        None when there is no such queue, or when its number is not known yet.

        Raises:
            Retryable: when the number cannot be read now.
        """


def evictor(management_url: str | None, vhost: str) -> Evictor | None:
    """Return an evictor through the management API at `CODITECT_MANAGEMENT_URL`; None without that setting.

    The queues that it lists are those in `vhost`.

    Raises:
        SetupError: when the setting is no URL.
    """
    return None if management_url is None else ManagementEvictor(Management(management_url), vhost)


class ManagementEvictor:
    """An evictor through RabbitMQ's management API; concurrent calls share one list of connections."""

    def __init__(self, management: Management, vhost: str) -> None:
        self._management = management
        self._vhost = vhost
        self._turn = asyncio.Lock()
        self._begun = -1.0
        self._connections: tuple[Connection, ...] | ManagementUnavailable = ()
        self._failing = False

    async def evict(self, process: str) -> int:
        """Close a process's connections through the management API, and return how many were closed.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        names = connection_names(process)
        with self._noted():
            found = [one for one in await self._listed() if one.given_name in names]
            closed = await asyncio.gather(*(self._management.close(one, reason=REASON) for one in found))
        return sum(closed)

    async def queues(self) -> frozenset[str]:
        """Return the names of all queues, as the management API lists them.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        with self._noted():
            return await self._management.queues(self._vhost)

    async def messages(self, queue: str) -> int | None:
        """Return the number of all messages in a queue, as the management API tells; None if it knows no number.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        return await self._management.messages(self._vhost, queue)

    async def _listed(self) -> tuple[Connection, ...]:
        """Return the broker's connections, from a request made after this call began.

        Concurrent calls share the request, and its failure: the last of many agents is evicted while it counts as dead.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        asked = self._now()
        async with self._turn:
            if self._begun < asked:
                begun = self._now()
                try:
                    self._connections = await self._management.connections()
                except ManagementUnavailable as error:
                    self._connections = error
                self._begun = begun
            if isinstance(self._connections, ManagementUnavailable):
                raise self._connections.with_traceback(None)
            return self._connections

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Log when the calls of the management API in a `with` block begin to fail, and when they succeed again."""
        try:
            yield
        except ManagementUnavailable as error:
            if not self._failing:
                log.warning(
                    "No agent can be evicted now: frozen processes hold their work, and dead ones leave queues",
                    extra={"reason": str(error)},
                )
            self._failing = True
            raise
        if self._failing:
            log.info("Eviction works again")
        self._failing = False

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def close_owner(
    evict: Evictor | None, previous: str, *, is_back: Callable[[], Awaitable[bool]] | None = None
) -> int:
    """Close the broker connections of a shard's former owner, which may hold unsettled results; return their number.

    Never fails, but looks twice and may take 12 s: run it beside the take-over. The second look is left out when the
    owner `is_back` by then. Without an evictor, the broker ends the connections when it misses heartbeats, after 10 to
    15 s.
    """
    if evict is None or not previous:
        return 0
    closed = await _closed(evict, previous)
    if closed < len(connection_names(previous)):
        await asyncio.sleep(LISTED_SECONDS)
        if is_back is not None and await is_back():
            return closed
        closed += await _closed(evict, previous)
    if closed:
        log.warning("A former owner was evicted", extra={"owner": previous, "connections": closed})
    return closed


async def _closed(evict: Evictor, previous: str) -> int:
    try:
        async with asyncio.timeout(OWNER_SECONDS):
            return await evict.evict(previous)
    except (CoditectError, TimeoutError) as error:
        log.warning("A former owner cannot be evicted now", extra={"owner": previous, "reason": repr(error)})
        return 0
