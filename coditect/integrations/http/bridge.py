"""The bridge: which HTTP agents this process serves, and for how long.

An HTTP agent lives as long as its heartbeats come: they renew a lease in a registry of HTTP agents, beside that of the
fleet. A bridge looks there once a second. It serves each agent that it claims (another bridge may have claimed it) and
whose URL takes connections, as an `Agent` of its own under the agent's id, which enters the fleet's registry by itself.
When the lease ends, or the URL refuses, the agent is stopped: its consumers end and its attempts fail as those of an
agent that is gone.

A registry that forgot an agent gets it again from the bridge that serves it, and one that does not answer ends nothing.

`HttpAgents` has the use cases that the API's routes call: register, send heartbeats, be found, answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial

from coditect.agent.declaration import Agent
from coditect.aio.supervisor import Supervisor, happened
from coditect.aio.threads import in_thread
from coditect.broker.port import Broker
from coditect.errors import CoditectError, Conflict, InputError, InvalidTask, NotFound, Overloaded, RegistryUnavailable
from coditect.integrations.http.addresses import AgentRefused, AllowedHosts, AnswerBroken
from coditect.integrations.http.calls import AgentCalls
from coditect.integrations.http.messages import AgentResponseEvent, AnswerForwarding, Callbacks, agent_of
from coditect.integrations.http.registration import (
    AGENT_NAME,
    BASE_URL,
    REGISTERED_BY,
    AgentLink,
    HttpRegistration,
    http_agent,
)
from coditect.model.capability import CapabilitySpec, nearest_names
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration
from coditect.operations.documents import instant_text
from coditect.registry.catalogue import NOT_SERVED, find_all, find_known, get_known
from coditect.registry.port import LAPSED, LEFT, Registry, Search

log = logging.getLogger(__name__)

BRIDGE_CHECK_SECONDS = 1.0
SERVE_RETRY_SECONDS = 10.0
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


@dataclass(eq=False)
class HttpBridge:
    """The HTTP agents that one process serves; `run` looks after them until it is canceled."""

    registrations: Registry
    """The registry of the HTTP agents."""
    serve: Serve
    calls: AgentCalls
    callbacks: Callbacks
    background: Supervisor
    _: KW_ONLY
    name: AgentId
    callback_url: str
    """The URL below which answers by callback come."""
    lease_seconds: float
    _served: dict[AgentId, _Served] = field(default_factory=dict)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _silent: bool = False
    _closed: bool = False

    @property
    def serving(self) -> frozenset[AgentId]:
        """The ids of the HTTP agents that take tasks through this bridge."""
        return frozenset(agent_id for agent_id, served in self._served.items() if served.work is not None)

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
            await happened(self._hurry, BRIDGE_CHECK_SECONDS)
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
                await self.registrations.clear_start(_claim(agent_id), self.name)
            except RegistryUnavailable:
                return  # the claims end by themselves

    # -- looking ----------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Compare the registered agents with the served ones; start missing ones, and stop those gone or changed."""
        now = asyncio.get_running_loop().time()
        if self._closed:
            return
        try:
            records = await self.registrations.find(Search())
            found = {record.agent_id: record for record in records}
            async with asyncio.TaskGroup() as looks:
                for agent_id in set(self._served) - set(found):
                    looks.create_task(self._missed(agent_id, now))
                for record in records:
                    looks.create_task(self._keep(record.registration, now + record.lease_ms / 1000))
        except* RegistryUnavailable as errors:
            if not self._silent:
                log.warning("The registry of HTTP agents does not answer", extra={"reason": str(errors.exceptions[0])})
            self._silent = True
            for served in self._served.values():  # their heartbeats cannot be noted either
                served.ends_at = now + self.lease_seconds
        else:
            self._silent = False

    async def _missed(self, agent_id: AgentId, now: float) -> None:
        """Stop an HTTP agent that the registry lacks if it left or its lease is nearly over; else register it again.

        It is registered again only if no other bridge has claimed it.
        """
        served = self._served[agent_id]
        left = served.ends_at - now
        if any(record.load.trouble == LEFT for record in await self.registrations.gone(agent_id)):
            self._leave(served, LEFT)
        elif left <= BRIDGE_CHECK_SECONDS / 2:
            self._leave(served, LAPSED)
        elif await self._is_mine(agent_id):
            log.warning("The registry had forgotten an HTTP agent", extra={"agent_id": agent_id})
            await self.registrations.register(served.registration, ALIVE, lease_seconds=left)

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
        started_at_ms = registration.started_at_ms  # no difference: an agent may register the same again
        if served is not None and replace(served.registration, started_at_ms=started_at_ms) != registration:
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
            await self.calls.connect(served.registration.metadata[BASE_URL])
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
            served.work = self.background.start(self._run(served), name=name)

    async def _is_mine(self, agent_id: AgentId) -> bool:
        other = await self.registrations.mark_start(_claim(agent_id), self.name, keep_seconds=CLAIM_SECONDS)
        return other is None

    def _link(self, registration: Registration) -> AgentLink:
        return AgentLink(
            registration.metadata[BASE_URL],
            self.calls,
            self.callbacks,
            self.background,
            callback_url=self.callback_url,
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
            agent = await in_thread(partial(http_agent, served.registration, served.link))
            await self.serve(agent, served.registration, served.stop)
            if not served.ended_here:
                await self.registrations.deregister(agent_id)
                self._served.pop(agent_id, None)
        except CoditectError as error:
            served.trouble, served.again_at = str(error), asyncio.get_running_loop().time() + SERVE_RETRY_SECONDS
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


def _claim(agent_id: AgentId) -> str:
    return f"bridge of {agent_id}"


MOST_AGENTS = 500
"""The number of HTTP agents that may be registered: each costs the bridge two connections to the broker."""
BEATS_IN_A_LEASE = 3
FOREIGN_LEASE_SECONDS = 90.0
"""The shortest lease of an agent that registers as those of other platforms, which may beat every 30 s."""
UNWELL = (AgentStatus.STARTING, AgentStatus.OFFLINE)


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a registration or a heartbeat."""

    agent_id: str
    status: str
    """The agent's status: `starting` until a bridge serves it, then `idle`, `busy` or `draining`; or `offline`."""
    lease_seconds: float
    """How long the agent counts as alive from now on."""
    heartbeat_seconds: float
    """The seconds between two heartbeats."""


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """The health of an agent: whether it takes tasks, and why not."""

    agent_id: str
    healthy: bool
    status: str
    reason: str
    """Why the agent is not healthy, or what it waits for; empty when nothing is known to be wrong."""
    lease_ms: int
    """Milliseconds until the agent counts as gone, unless its heartbeat comes."""
    last_heartbeat: str | None
    """When the agent's last heartbeat came, ISO 8601 in UTC; null if a process of an older version got it."""


@dataclass(eq=False)
class HttpAgents:
    """The use cases of HTTP agents: register, heartbeat, answer, and one list of them and the fleet's other agents."""

    registrations: Registry
    """The registry of the HTTP agents, those included that no bridge serves yet."""
    fleet: Registry
    bridge: HttpBridge
    callbacks: Callbacks
    hosts: AllowedHosts
    _: KW_ONLY
    lease_seconds: float
    _forwarding: AnswerForwarding = field(default_factory=AnswerForwarding)

    async def drain(self) -> None:
        """Take no more tasks for HTTP agents; wait up to CODITECT_DRAIN_SECONDS for the answers to running ones."""
        await self.bridge.close()

    async def register(self, wanted: HttpRegistration, *, by: str = "", admin: bool = True) -> Registered:
        """Register an HTTP agent, or change its registration; idempotent by its id, or else by its name and URL.

        One that registers as `offline` is not served any more. `by` is the name of the caller's key, and `admin` tells
        whether the key may move any agent to another URL.

        Raises:
            InputError: when the URL's host is not allowed, the declaration is wrong, or an agent of another kind has
                the id; the error says what to write.
            Conflict: when another key has registered the agent with another URL.
            Overloaded: when too many agents are registered; retryable.
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        found = await in_thread(partial(wanted.checked, self.hosts, now_ms=time.time_ns() // 1_000_000))
        await self._check_room(found.agent_id)
        served = await self.fleet.get(found.agent_id)
        if served is not None and BASE_URL not in served.registration.metadata:
            raise InputError("Another agent has this id", id=found.agent_id, fix="choose another agent_id")
        found = _owned(found, await self.registrations.get(found.agent_id), by=by, admin=admin)
        await self.registrations.register(found, ALIVE, lease_seconds=self._lease(found))
        registered = self._registered(found, served)
        if wanted.status.lower() == AgentStatus.OFFLINE:
            await self.registrations.deregister(found.agent_id)
            registered = replace(registered, status=AgentStatus.OFFLINE.value, lease_seconds=0.0)
        self.bridge.hurry()
        return registered

    async def _check_room(self, agent_id: AgentId) -> None:
        known = await self.registrations.leases()
        if agent_id not in known and len(known) >= MOST_AGENTS:
            raise Overloaded("Too many HTTP agents are registered", most=MOST_AGENTS, fix="wait until a lease ends")

    async def beat(self, agent_id: AgentId) -> Registered:
        """Extend the lease of an HTTP agent at its heartbeat, and return its status and lease.

        One whose heartbeats had stopped is there again.

        Raises:
            NotFound: when no HTTP agent of the last day has the id, or it was drained: it registers again.
            Overloaded: when the agent had gone, and too many agents are registered by now; retryable.
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        known = await self.registrations.get(agent_id)
        lease_seconds = 0.0 if known is None else self._lease(known.registration)
        if known is None or not await self.registrations.renew(agent_id, ALIVE, lease_seconds=lease_seconds):
            known = next(iter(await self.registrations.gone(agent_id)), None)
            if known is None or known.load.trouble != LAPSED:
                raise NotFound("No HTTP agent has this id", id=agent_id, fix="register again: POST /register")
            await self._check_room(agent_id)
            await self.registrations.register(known.registration, ALIVE, lease_seconds=self._lease(known.registration))
            self.bridge.hurry()
        return self._registered(known.registration, await self.fleet.get(agent_id))

    async def everyone(self) -> tuple[AgentRecord, ...]:
        """Return the agents that live, and those that went away within a day."""
        return tuple(map(self._explained, await find_all(self.fleet, self.registrations)))

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        """Return the living agents that fit criteria such as a tag, even HTTP agents that no bridge serves yet.

        A search for the status `offline` also finds agents that went away within a day.
        """
        return tuple(map(self._explained, await find_known(self.fleet, self.registrations, search)))

    async def get(self, agent_id: AgentId) -> AgentRecord:
        """Return the registry's record of an agent by its id, also if no bridge serves it yet, or it went away.

        Raises:
            NotFound: when no agent of the last day has the id; its fact `nearest` holds similar ids.
        """
        record = await get_known(self.fleet, self.registrations, agent_id)
        if record is None:
            nearest = nearest_names(agent_id, await self.fleet.leases())
            raise NotFound("No agent has this id", id=agent_id, nearest=nearest, fix="GET /agents lists the ids")
        return self._explained(record)

    async def capabilities(self, text: str) -> list[CapabilitySpec]:
        """Return the capabilities of living agents with a text in name, description or tags, sorted by name."""
        wanted, found = text.casefold(), dict[str, CapabilitySpec]()
        for record in await self.find(Search()):
            for spec in record.registration.capabilities:
                if any(wanted in text.casefold() for text in (spec.name, spec.description, *spec.tags)):
                    found[spec.name] = spec
        return [found[name] for name in sorted(found)]

    async def health(self, agent_id: AgentId) -> AgentHealth:
        """Return an agent's health: bad while it is starting or offline, reports trouble, or waits for a breaker.

        An HTTP agent is starting while no bridge reaches its URL, and offline for a day after it went away.

        Raises:
            NotFound: when no agent of the last day has the id.
        """
        record = await self.get(agent_id)
        load, beat = record.load, await self.registrations.get(agent_id)
        waits = ", ".join(f"{capability} waits for the breaker {breaker}" for capability, breaker in load.waiting)
        reason = load.trouble or waits
        lease_ms = record.lease_ms if beat is None else beat.lease_ms
        healthy, last = load.status not in UNWELL and not reason, instant_text(load.beat_ms) if load.beat_ms else None
        return AgentHealth(agent_id, healthy, load.status.value, reason, lease_ms, last)

    async def answer(self, token: str, answer: AgentResponseEvent, broker: Broker) -> None:
        """Give the answer that an HTTP agent posted to a callback to its attempt, in this API process or another.

        Raises:
            NotFound: when no attempt waits for it, or none any more.
            InvalidTask: when it is the answer to another request; the attempt still waits.
            Retryable: when it is another process's, which does not answer.
        """
        try:
            self.callbacks.take(token, answer)
        except AnswerBroken as error:
            raise InvalidTask(error.sentence, **error.facts) from error
        except NotFound:
            agent_id = agent_of(token)
            if agent_id in self.bridge.serving or await self.registrations.get(agent_id) is None:
                raise
            await self._forwarding.send(broker, token, answer)

    def _explained(self, record: AgentRecord) -> AgentRecord:
        """Return an agent's record, with the reason why no bridge serves the agent if this process knows it."""
        trouble = self.bridge.trouble(record.agent_id) if record.load == NOT_SERVED else ""
        return replace(record, load=replace(record.load, trouble=trouble)) if trouble else record

    def _lease(self, registration: Registration) -> float:
        foreign = AGENT_NAME in registration.metadata
        return max(self.lease_seconds, FOREIGN_LEASE_SECONDS) if foreign else self.lease_seconds

    def _registered(self, registration: Registration, record: AgentRecord | None) -> Registered:
        status = AgentStatus.STARTING if record is None else record.load.status
        lease_seconds = self._lease(registration)
        return Registered(registration.agent_id, status.value, lease_seconds, lease_seconds / BEATS_IN_A_LEASE)


def _owned(found: Registration, known: AgentRecord | None, *, by: str, admin: bool) -> Registration:
    """Return a registration with the name of the key that registered the agent at its URL; an admin's is not kept.

    Raises:
        Conflict: when the agent has another URL, which another key registered.
    """
    metadata = {name: value for name, value in found.metadata.items() if name != REGISTERED_BY}
    before = {} if known is None else known.registration.metadata
    owner = before.get(REGISTERED_BY)
    if known is not None and before.get(BASE_URL) != metadata[BASE_URL]:
        if not admin and owner != by:
            fix = "use the key that registered it or one with the role admin, or choose another agent_id"
            raise Conflict("Another key registered this agent with another URL", id=found.agent_id, fix=fix)
        owner = None
    owner = owner or ("" if admin else by)
    return replace(found, metadata=metadata | ({REGISTERED_BY: owner} if owner else {}))
