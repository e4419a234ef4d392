"""The part of a client that takes locks, lists them, and releases those of others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack

from coditect.aio.supervisor import Supervisor
from coditect.client.control_plane import ControlPlane, pages
from coditect.collaboration.lock_requests import LockRequests
from coditect.collaboration.locks import Locking, LockTerms
from coditect.messaging.rpc import Requests
from coditect.wire.control import Verb


@dataclass(frozen=True, slots=True)
class LockRow:
    """A lock request (ticket) at one resource: who holds the lock, or waits for it."""

    resource: str
    state: str
    """`held` or `waiting`; the waiting ones come in the order in which they are granted."""
    mode: str
    fence: int
    """The fencing token of the holder; 0 of one that waits."""
    agent: str
    """The agent or client that asked."""
    task: str
    """The task whose handler asked; empty for a client's."""
    begun_ms: int
    expires_ms: int
    """When the ticket ends unless it is renewed, in milliseconds since the epoch."""
    ticket: str


class _ClientLocks:
    """The port through which a client's locks reach the control plane."""

    def __init__(self, locks: LockRequests, name: str) -> None:
        self._locks = locks
        self._name = name
        self.keep_lock = locks.keep_lock
        self.release_lock = locks.release_lock
        self.close = locks.close

    async def acquire_lock(self, resources: list[str], **terms: Unpack[LockTerms]) -> dict[str, Any]:
        """Lock resources for the client, waiting if told to; return `ticket` (its id), `fence` and `valid_until`."""
        wanted = self._locks.want(resources, terms, owner=self._name)
        state = await self._locks.ask(wanted, timeout_seconds=terms["timeout_seconds"])
        return await self._locks.wait_for(wanted, state, terms["timeout_seconds"])


class ClientLocks(Locking):
    """The methods of `Client` that take locks, list them, and release them by force."""

    _requests: Requests
    _control: ControlPlane
    _background: Supervisor

    @cached_property
    def _lock_port(self) -> _ClientLocks:
        return _ClientLocks(LockRequests(self._control, self._requests, self._background), self._requests.name)

    async def _locks_released(self) -> None:
        if "_lock_port" in vars(self):
            await self._lock_port.close()

    async def locks(self, resource: str | None = None, *, most: int | None = None) -> AsyncIterator[LockRow]:
        """Yield who holds or awaits locks on all resources, or on one; by resource, and then in order of arrival."""
        async for row in pages(self._control, Verb.LOCK_LIST, "locks", {"resource": resource}, most=most):
            yield LockRow(**row)

    async def release_locks(
        self, resource: str | None = None, *, agent: str | None = None, task: str | None = None, reason: str
    ) -> int:
        """Release by force a resource's locks, or all that an agent or one of its tasks has or awaits; return how many.

        The holders get `LockLost` with the reason. They may write all the same until they hear of it: only a resource
        that checks the fence refuses that.
        """
        body = {"resource": resource} if agent is None else {"agent": agent, "task": task}
        released, more = 0, True
        while more:
            answer = await self._control.ask(Verb.LOCK_RELEASE, body | {"reason": reason})
            released += answer["released"]
            more = answer["more"] and answer["released"] > 0
        return released
