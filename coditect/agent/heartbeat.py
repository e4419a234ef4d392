"""The heartbeat of an agent: its registration, the renewal of its lease, and its deregistration.

The agent goes on working without the registry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import psutil

from coditect.aio.supervisor import Health, Supervisor, happened
from coditect.errors import RegistryUnavailable
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.registry.port import BEAT_SECONDS, LEASE_SECONDS, Registry

log = logging.getLogger(__name__)

REPAIR_SECONDS = 0.5
"""Longest pause between two heartbeats while the registry does not answer."""

SHORTEST_PAUSE_SECONDS = 0.02
OFFLINE_SECONDS = 1.5
"""The longest lease of an agent whose broker does not answer: observers have time to see it as offline."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The CPU and memory use of an agent process."""

    cpu_percent: float
    """Share of one core since the sample before, in percent; 0 for the first sample."""
    resident_bytes: int


def load_sampler() -> Callable[[], Usage]:
    """Return a function that samples this process's CPU and memory use, not its children's; 0 if it may not look."""
    process = psutil.Process()
    process.cpu_percent()

    def sample() -> Usage:
        try:
            return Usage(process.cpu_percent(), process.memory_info().rss)
        except (psutil.Error, OSError):  # a locked-down /proc
            return Usage(0.0, 0)

    return sample


class Heartbeat:
    """An agent's entry in the registry: made at the start, renewed by heartbeats, and removed at the end.

    While the agent is offline, because its broker does not answer, its lease is left to end.

    Entry waits for the first attempt and exit for the last one, each at most as long as the registry's own limit (1 s);
    neither fails when the registry does. `load` is called for each heartbeat, on the event loop. The next heartbeat
    registers the agent again in a registry that forgot it; a registry that fails is tried again after at most
    REPAIR_SECONDS.
    """

    def __init__(
        self,
        registry: Registry,
        registration: Registration,
        load: Callable[[], Load],
        *,
        beat_seconds: float = BEAT_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        health: Health | None = None,
    ) -> None:
        self._registry = registry
        self._registration = registration
        self._load = load
        self._beat_seconds = beat_seconds
        self._lease_seconds = lease_seconds
        self._status: AgentStatus | None = None
        self._registered = False
        self._failing = False
        self._ending = False
        self._lapses_at = 0.0
        self._hurry = asyncio.Event()
        self._told_at = 0.0
        self._accepted_at = self._now()
        self._supervisor = Supervisor(health)

    @property
    def known(self) -> bool:
        """True when the registry accepted the agent's last heartbeat."""
        return self._registered and not self._failing

    @property
    def lag_seconds(self) -> float:
        """The time in seconds by which the registry's next acceptance of a heartbeat is overdue."""
        return max(0.0, self._now() - self._accepted_at - self._beat_seconds)

    def set_status(self, status: AgentStatus | None) -> None:
        """Publish a status of the agent now and in each later heartbeat; None brings back what `load` reports."""
        self._status = status
        self._hurry.set()

    async def __aenter__(self) -> Self:
        self._told_at = self._now()
        await self._tell()
        name = f"heartbeat of {self._registration.agent_id}"
        self._beats = self._supervisor.keep(self._beat, name=name, critical=True, idle=True, until=lambda: self._ending)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._hurry.set()
        try:
            if not isinstance(error, asyncio.CancelledError):
                await asyncio.wait({self._beats})
            await self._supervisor.close()
        finally:
            await self._deregister()

    async def _beat(self) -> None:
        while not self._ending:
            every = min(self._beat_seconds, REPAIR_SECONDS) if self._failing else self._beat_seconds
            await happened(self._hurry, max(SHORTEST_PAUSE_SECONDS, self._told_at + every - self._now()))
            self._hurry.clear()
            self._told_at = self._now()
            if not self._ending:
                await self._tell()

    async def _tell(self) -> None:
        load = self._load()
        if self._status is not None:
            load = replace(load, status=self._status)
        lease_seconds = self._lease_seconds
        if load.status is AgentStatus.OFFLINE and self._registered:
            # the broker does not answer it: its lease ends, and the control plane looks after its tasks
            lease_seconds = min(self._lapses_at - self._now(), OFFLINE_SECONDS)
        if lease_seconds <= 0:
            return
        try:
            forgotten = await self._renew_or_register(load, lease_seconds)
        except RegistryUnavailable as error:
            if not self._failing:
                log.warning("The registry does not answer; work goes on", extra=self._facts(reason=str(error)))
            self._failing = True
            return
        self._accepted_at = self._now()
        if self._failing:
            log.info("The registry answers again and knows this agent", extra=self._facts())
        elif forgotten:
            log.warning("The registry had forgotten this agent and knows it again", extra=self._facts())
        self._failing = False

    async def _renew_or_register(self, load: Load, lease_seconds: float) -> bool:
        """Renew the lease or register the agent; return whether the registry had forgotten the agent."""
        agent_id = self._registration.agent_id
        self._lapses_at = self._now() + lease_seconds
        if self._registered and await self._registry.renew(agent_id, load, lease_seconds=lease_seconds):
            return False
        forgotten = self._registered
        await self._registry.register(self._registration, load, lease_seconds=lease_seconds)
        self._registered = True
        return forgotten

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _deregister(self) -> None:
        try:
            await self._registry.deregister(self._registration.agent_id)
        except RegistryUnavailable as error:
            log.info("Not deregistered; the lease will lapse", extra=self._facts(reason=str(error)))

    def _facts(self, **facts: str) -> dict[str, str]:
        return {"agent_id": self._registration.agent_id, **facts}
