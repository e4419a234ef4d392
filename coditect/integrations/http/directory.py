"""The use cases of HTTP agents, which the API's routes call: register, send heartbeats, be found, answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from coditect.broker.port import Broker
from coditect.errors import InvalidTask, NotFound, Overloaded
from coditect.integrations.http.addresses import AllowedHosts
from coditect.integrations.http.bridge import ALIVE, HttpBridge
from coditect.integrations.http.callbacks import Callbacks, agent_of
from coditect.integrations.http.failures import AnswerBroken
from coditect.integrations.http.forwarding import AnswerForwarding
from coditect.integrations.http.messages import AgentResponseEvent
from coditect.integrations.http.registration import HttpRegistration
from coditect.model.capability import CapabilitySpec, nearest_names
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry.port import Registry, Search
from coditect.registry.starting import NOT_SERVED, find_living, get_living

MOST_AGENTS = 500
"""The number of HTTP agents that may be registered: each costs the bridge two connections to the broker."""
BEATS_IN_A_LEASE = 3
UNWELL = (AgentStatus.STARTING, AgentStatus.OFFLINE)


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a registration or a heartbeat."""

    agent_id: str
    status: str
    """The agent's status: `starting` until a bridge serves it, then `idle`, `busy` or `draining`."""
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


class HttpAgents:
    """The use cases of HTTP agents: register, heartbeat, answer, and one list of them and the fleet's other agents."""

    def __init__(
        self,
        registrations: Registry,
        fleet: Registry,
        bridge: HttpBridge,
        callbacks: Callbacks,
        hosts: AllowedHosts,
        *,
        lease_seconds: float,
    ) -> None:
        self.registrations = registrations
        """The registry of the HTTP agents, those included that no bridge serves yet."""
        self._fleet = fleet
        self._bridge = bridge
        self._callbacks = callbacks
        self._hosts = hosts
        self._lease_seconds = lease_seconds
        self._forwarding = AnswerForwarding()

    async def drain(self) -> None:
        """Take no more tasks for HTTP agents; wait up to CODITECT_DRAIN_SECONDS for the answers to running ones."""
        await self._bridge.close()

    async def register(self, given: HttpRegistration) -> Registered:
        """Register an HTTP agent, or change its registration; idempotent by its name and URL.

        Raises:
            InputError: when the URL's host is not allowed, or the declaration is wrong; the error says what to write.
            Overloaded: when too many agents are registered; retryable.
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        found = given.checked(self._hosts, now_ms=time.time_ns() // 1_000_000)
        known = await self.registrations.leases()
        if found.agent_id not in known and len(known) >= MOST_AGENTS:
            raise Overloaded("Too many HTTP agents are registered", most=MOST_AGENTS, fix="wait until a lease ends")
        await self.registrations.register(found, ALIVE, lease_seconds=self._lease_seconds)
        self._bridge.hurry()
        return self._registered(found.agent_id, await self._fleet.get(found.agent_id))

    async def beat(self, agent_id: AgentId) -> Registered:
        """Extend the lease of an HTTP agent at its heartbeat, and return its status and lease.

        Raises:
            NotFound: when no HTTP agent has the id, such as after a longer silence: it registers again.
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        if not await self.registrations.renew(agent_id, ALIVE, lease_seconds=self._lease_seconds):
            raise NotFound("No HTTP agent has this id", id=agent_id, fix="register again: POST /register")
        return self._registered(agent_id, await self._fleet.get(agent_id))

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        """Return the living agents that fit criteria such as a tag, even HTTP agents that no bridge serves yet."""
        return tuple(map(self._explained, await find_living(self._fleet, self.registrations, search)))

    async def get(self, agent_id: AgentId) -> AgentRecord:
        """Return the registry's record of a living agent by its id, also of an HTTP agent that no bridge serves yet.

        Raises:
            NotFound: when no living agent has the id; its fact `nearest` holds similar ids.
        """
        record = await get_living(self._fleet, self.registrations, agent_id)
        if record is None:
            nearest = nearest_names(agent_id, await self._fleet.leases())
            raise NotFound("No agent has this id", id=agent_id, nearest=nearest, fix="GET /agents lists the ids")
        return self._explained(record)

    async def capabilities(self, text: str) -> list[CapabilitySpec]:
        """Return the capabilities of living agents with a text in name, description or tags, sorted by name."""
        wanted, found = text.casefold(), dict[str, CapabilitySpec]()
        for record in await self.find(Search()):
            for spec in record.registration.capabilities:
                if any(wanted in one.casefold() for one in (spec.name, spec.description, *spec.tags)):
                    found[spec.name] = spec
        return [found[name] for name in sorted(found)]

    async def health(self, agent_id: AgentId) -> AgentHealth:
        """Return a living agent's health: bad while it is starting or offline, reports trouble, or waits for a breaker.

        An HTTP agent is starting while no bridge reaches its URL.

        Raises:
            NotFound: when no living agent has the id.
        """
        record = await self.get(agent_id)
        load, beat = record.load, await self.registrations.get(agent_id)
        waits = ", ".join(f"{capability} waits for the breaker {breaker}" for capability, breaker in load.waiting)
        reason = load.trouble or waits
        lease_ms = record.lease_ms if beat is None else beat.lease_ms
        return AgentHealth(agent_id, load.status not in UNWELL and not reason, load.status.value, reason, lease_ms)

    async def answer(self, token: str, answer: AgentResponseEvent, broker: Broker) -> None:
        """Give the answer that an HTTP agent posted to a callback to its attempt, in this API process or another.

        Raises:
            NotFound: when no attempt waits for it, or none any more.
            InvalidTask: when it is the answer to another request; the attempt goes on waiting.
            Retryable: when it is another process's, which does not answer.
        """
        try:
            self._callbacks.take(token, answer)
        except AnswerBroken as error:
            raise InvalidTask(error.sentence, **error.facts) from error
        except NotFound:
            agent_id = agent_of(token)
            if agent_id in self._bridge.serving or await self.registrations.get(agent_id) is None:
                raise
            await self._forwarding.send(broker, token, answer)

    def _explained(self, record: AgentRecord) -> AgentRecord:
        """Return an agent's record, with the reason why no bridge serves the agent if this process knows it."""
        trouble = self._bridge.trouble(record.agent_id) if record.load == NOT_SERVED else ""
        return replace(record, load=replace(record.load, trouble=trouble)) if trouble else record

    def _registered(self, agent_id: AgentId, record: AgentRecord | None) -> Registered:
        status = AgentStatus.STARTING if record is None else record.load.status
        return Registered(agent_id, status.value, self._lease_seconds, self._lease_seconds / BEATS_IN_A_LEASE)
