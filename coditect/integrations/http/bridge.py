"""The bridge: which HTTP agents this process serves, and for how long.

An HTTP agent lives as long as its heartbeats come: they renew a lease in a registry of HTTP agents, beside that of the
fleet. A bridge looks there once a second. It serves each agent that it claims (another bridge may have claimed it) and
whose URL takes connections, as an `Agent` of its own under the agent's id, which enters the fleet's registry by itself.
When the lease ends, or the URL refuses, the agent is stopped: its consumers end and its attempts fail as those of an
agent that is gone.

A registry that forgot an agent gets it again from the bridge that serves it, and one that does not answer ends nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from coditect.agent.declaration import Agent
from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError, RegistryUnavailable
from coditect.integrations.http.callbacks import Callbacks
from coditect.integrations.http.calls import AgentCalls
from coditect.integrations.http.failures import AgentRefused
from coditect.integrations.http.link import AgentLink
from coditect.integrations.http.registration import BASE_URL, http_agent
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.registry.port import Registry, Search

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 10.0
"""The pause before the bridge tries again to serve an agent that could not be served."""
CLAIM_SECONDS = 5.0
"""How long a bridge's claim of an agent outlives the bridge."""
ALIVE = Load(status=AgentStatus.IDLE)

Serve = Callable[[Agent, Registration, asyncio.Event], Awaitable[None]]
"""A function that runs an agent under its registration's id until the event is set, and then drains it."""


@dataclass(eq=False, slots=True)
class _Served:
    """An HTTP agent that this bridge has claimed, so that no other bridge serves it."""

    registration: Registration
    link: AgentLink
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ends_at: float = 0.0
    """When the agent's lease ends, on the event loop's clock, as far as this bridge knows."""
    work: asyncio.Task[None] | None = None
    ended_here: bool = False
    """Whether the bridge stops the agent; one that ends otherwise was asked to drain."""
    doubted: bool = False
    """Whether a call met a URL that took no connection, or lost one."""
    trouble: str = ""
    """Why the agent is not served, as far as this bridge knows."""
    again_at: float = 0.0
    """When to try again to serve an agent that could not be served."""


class HttpBridge:
    """The HTTP agents that one process serves; `run` looks after them until it is canceled."""

    def __init__(
        self,
        registrations: Registry,
        serve: Serve,
        calls: AgentCalls,
        callbacks: Callbacks,
        background: Supervisor,
        *,
        name: str,
        callback_url: str,
        lease_seconds: float,
    ) -> None:
        """Take the HTTP agents' registry, a function that runs an agent, a client for calls, and the bridge's name.

        Answers by callback come to URLs below `callback_url`.
        """
        self._registrations = registrations
        self._serve = serve
        self._calls = calls
        self._callbacks = callbacks
        self._background = background
        self._name = AgentId(name)
        self._callback_url = callback_url
        self._lease_seconds = lease_seconds
        self._served: dict[AgentId, _Served] = {}
        self._hurry = asyncio.Event()
        self._silent, self._closed = False, False

    @property
    def serving(self) -> frozenset[AgentId]:
        """The ids of the HTTP agents that take tasks through this bridge."""
        return frozenset(one for one, served in self._served.items() if served.work is not None)

    def trouble(self, agent_id: AgentId) -> str:
        """Return why an HTTP agent is not served; empty when it is, or when this bridge knows nothing of it."""
        served = self._served.get(agent_id)
        return "" if served is None else served.trouble

    def hurry(self) -> None:
        """Let `run` look at the registrations at once, without the rest of its pause."""
        self._hurry.set()

    async def run(self) -> None:
        """Start and stop serving HTTP agents as their registrations change, with a look each second, until canceled."""
        while True:
            await self._look()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._hurry.wait()
            except TimeoutError:
                continue
            finally:
                self._hurry.clear()

    async def close(self) -> None:
        """Drain all HTTP agents, give up the claims on them so that other bridges can serve them, and serve no more.

        Callbacks are still taken meanwhile. Idempotent.
        """
        self._closed = True
        works = [served.work for served in self._served.values() if served.work is not None]
        for served in self._served.values():
            served.ended_here = True
            served.stop.set()
        if works:
            await asyncio.wait(works)
        for agent_id in tuple(self._served):
            try:
                await self._registrations.clear_start(_claim(agent_id), self._name)
            except RegistryUnavailable:
                return  # the claims end by themselves

    # -- looking ----------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Compare the registered agents with the served ones; start missing ones, and stop those gone or changed."""
        now = asyncio.get_running_loop().time()
        if self._closed:
            return
        try:
            records = await self._registrations.find(Search())
            found = {one.agent_id: one for one in records}
            async with asyncio.TaskGroup() as looks:
                for agent_id in set(self._served) - set(found):
                    looks.create_task(self._missed(agent_id, now))
                for one in records:
                    looks.create_task(self._keep(one.registration, now + one.lease_ms / 1000))
        except* RegistryUnavailable as errors:
            if not self._silent:
                log.warning("The registry of HTTP agents does not answer", extra={"reason": str(errors.exceptions[0])})
            self._silent = True
            for served in self._served.values():  # their heartbeats cannot be noted either
                served.ends_at = now + self._lease_seconds
        else:
            self._silent = False

    async def _missed(self, agent_id: AgentId, now: float) -> None:
        """Stop an HTTP agent that the registry lacks if its lease is nearly over; else register it again.

        It is registered again only if no other bridge has claimed it.
        """
        served = self._served[agent_id]
        left = served.ends_at - now
        if left <= LOOK_SECONDS / 2:
            self._leave(served, "its heartbeats stopped")
        elif await self._is_mine(agent_id):
            log.warning("The registry had forgotten an HTTP agent", extra={"agent_id": agent_id})
            await self._registrations.register(served.registration, ALIVE, lease_seconds=left)

    async def _keep(self, registration: Registration, ends_at: float) -> None:
        """Serve a registered agent while this bridge can claim it and its URL refuses no connection; else stop it.

        One that has registered something else is stopped first. A URL that does not answer in time changes nothing.
        The URL is checked before the start, after a call that it refused or lost, and while callbacks are awaited.
        """
        agent_id = registration.agent_id
        served = self._served.get(agent_id)
        if not await self._is_mine(agent_id):
            if served is not None:
                self._leave(served, "another bridge serves it")
            return
        if served is not None and _declared(served.registration) != _declared(registration):
            if not self._leave(served, "it registered again"):
                return
            served = None
        if served is None:
            served = self._served[agent_id] = _Served(registration, self._link(registration))
        served.ends_at = ends_at
        if served.doubted or served.work is None or served.link.deferred:
            await self._probe(served)

    async def _probe(self, served: _Served) -> None:
        """Start an agent whose URL takes connections, stop one whose URL refuses them; a slow answer changes nothing.

        One that could not be served is not started again before its pause is over.
        """
        try:
            await self._calls.connect(served.registration.metadata[BASE_URL])
        except AgentRefused as error:
            served.trouble = str(error)
            self._stop(served, served.trouble)
            return
        except TimeoutError:
            return  # it may have too much to do
        served.doubted = False
        if served.work is None and not self._closed and asyncio.get_running_loop().time() >= served.again_at:
            served.ended_here, served.stop = False, asyncio.Event()
            served.link = self._link(served.registration)
            name = f"agent {served.registration.agent_id}"
            served.work = self._background.start(self._run(served), name=name)

    async def _is_mine(self, agent_id: AgentId) -> bool:
        other = await self._registrations.mark_start(_claim(agent_id), self._name, keep_seconds=CLAIM_SECONDS)
        return other is None

    def _link(self, registration: Registration) -> AgentLink:
        return AgentLink(
            registration.metadata[BASE_URL],
            self._calls,
            self._callbacks,
            self._background,
            callback_url=self._callback_url,
            doubt=lambda: self._doubt(registration.agent_id),
        )

    # -- serving ----------------------------------------------------------------------------------------

    def _doubt(self, agent_id: AgentId) -> None:
        """Let `run` check at once whether an agent's URL takes connections, since a call lost or got no connection."""
        served = self._served.get(agent_id)
        if served is not None:
            served.doubted = True
            self.hurry()

    async def _run(self, served: _Served) -> None:
        """Run an agent until it is stopped; one that was asked to drain leaves the registry of HTTP agents, too."""
        agent_id = served.registration.agent_id
        served.trouble = ""
        try:
            await self._serve(http_agent(served.registration, served.link), served.registration, served.stop)
            if not served.ended_here:
                await self._registrations.deregister(agent_id)
                self._served.pop(agent_id, None)
        except CoditectError as error:
            served.trouble, served.again_at = str(error), asyncio.get_running_loop().time() + AGAIN_SECONDS
            log.warning("An HTTP agent cannot be served now", extra={"agent_id": agent_id, "reason": served.trouble})
        finally:
            served.work = None
            self.hurry()

    def _stop(self, served: _Served, reason: str) -> None:
        """Begin to stop an agent, if it is served: its attempts fail with the reason, so that its drain is short."""
        if served.work is None or served.ended_here:
            return
        log.warning("An HTTP agent is stopped", extra={"agent_id": served.registration.agent_id, "reason": reason})
        served.ended_here = True
        served.link.end(reason)
        served.stop.set()

    def _leave(self, served: _Served, reason: str) -> bool:
        """Begin to stop an agent, and forget it if it does not run any more; return whether it was forgotten."""
        self._stop(served, reason)
        if served.work is None:
            del self._served[served.registration.agent_id]
        return served.work is None


def _declared(registration: Registration) -> Registration:
    """Return a registration without its start time, to tell whether an agent has registered something else."""
    return replace(registration, started_at_ms=0)


def _claim(agent_id: AgentId) -> str:
    return f"bridge of {agent_id}"
