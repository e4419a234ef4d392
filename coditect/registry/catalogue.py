"""The look-up of agents in the fleet's registry and in that of the HTTP agents, and the catalogue of capabilities.

A bridge keeps its HTTP agents in a registry of their own, beside that of the fleet, which has an agent as soon as it
takes tasks. An HTTP agent's heartbeats go to its own registry alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace

from coditect.broker.port import Broker
from coditect.codec import is_binary
from coditect.errors import InputError, RegistryUnavailable, UnknownCapability, Unroutable
from coditect.model.capability import Priority, nearest_names
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus, Load
from coditect.registry.port import Registry, Search
from coditect.wire import routing

log = logging.getLogger(__name__)

NOT_SERVED = Load(status=AgentStatus.STARTING, trouble="no bridge serves it yet: its URL is tried once a second")


async def find_living(fleet: Registry, http_agents: Registry, search: Search) -> tuple[AgentRecord, ...]:
    """Return the living agents that match a search, sorted by agent id, with the HTTP agents that take no tasks yet."""
    found = {record.agent_id: record for record in await fleet.find(search)}
    for record in await http_agents.find(replace(search, status=None)):
        served, waiting = found.get(record.agent_id), _waiting(record)
        if served is not None:
            found[record.agent_id] = _beaten(served, record)
        elif search.matches(waiting) and await fleet.get(record.agent_id) is None:
            found[record.agent_id] = waiting
    return tuple(found[agent_id] for agent_id in sorted(found))


async def find_known(fleet: Registry, http_agents: Registry, search: Search) -> tuple[AgentRecord, ...]:
    """Return the living agents that match a search; if it asks for the status `offline`, also those that went away."""
    if search.status is not AgentStatus.OFFLINE:
        return await find_living(fleet, http_agents, search)
    return tuple(filter(search.matches, await find_all(fleet, http_agents)))


async def find_all(fleet: Registry, http_agents: Registry) -> tuple[AgentRecord, ...]:
    """Return the agents that live and the latest of those that went away within a day, sorted by agent id."""
    living = {record.agent_id: record for record in await find_living(fleet, http_agents, Search())}
    gone = {record.agent_id: record for registry in (fleet, http_agents) for record in await registry.gone()}
    return tuple(record for _, record in sorted((gone | living).items()))


async def get_known(fleet: Registry, http_agents: Registry, agent_id: AgentId) -> AgentRecord | None:
    """Return the record of an agent that lives or went away within a day; None when no such agent has the id."""
    record, own = await fleet.get(agent_id), await http_agents.get(agent_id)
    if own is not None:
        return _waiting(own) if record is None else _beaten(record, own)
    if record is not None:
        return record
    return next(iter((*await http_agents.gone(agent_id), *await fleet.gone(agent_id))), None)


def _waiting(record: AgentRecord) -> AgentRecord:
    return replace(record, load=replace(NOT_SERVED, beat_ms=record.load.beat_ms))


def _beaten(served: AgentRecord, own: AgentRecord) -> AgentRecord:
    """Return a served HTTP agent's record with the time of its own heartbeat, since the bridge beats in the fleet."""
    return replace(served, load=replace(served.load, beat_ms=own.load.beat_ms))


KNOWN_SECONDS = 60.0
"""How long a client relies on a look at a capability: that it has a queue, and that it takes and returns no bytes.

A workflow that gets through waits in the ledger for a queue, and an agent refuses bytes.
"""
MOST_KNOWN = 10_000


class CapabilityCatalogue:
    """A client's look-up of capabilities in the broker and the registry."""

    def __init__(self, broker: Broker, registry: Registry | None) -> None:
        self._broker = broker
        self._registry = registry
        self._queued: dict[str, float] = {}
        """The event loop's time until which a capability is known to have a task queue, by name."""
        self._no_bytes: dict[str, float] = {}
        """The event loop's time until which a capability is known to take and return JSON, by name."""

    async def registered(self) -> frozenset[str]:
        """Return the capabilities that living agents offer; an empty set without a registry, or without its answer."""
        if self._registry is not None:
            try:
                return await self._registry.capabilities()
            except RegistryUnavailable as error:
                log.debug("The nearest names are unknown", extra={"reason": str(error)})
        return frozenset()

    async def missing(self, capabilities: Iterable[str]) -> frozenset[str]:
        """Return those of the given capabilities that have no task queue: never declared by an agent, or lost.

        A queue that is there is not looked for again for 60 s.

        Raises:
            BrokerUnavailable: when the broker does not answer.
        """
        now, missing = asyncio.get_running_loop().time(), set[str]()
        for name in dict.fromkeys(capabilities):
            if self._queued.get(name, 0.0) <= now and not await self._has_queue(name):
                missing.add(name)
        return frozenset(missing)

    async def _has_queue(self, capability: str) -> bool:
        has = await self._broker.stats(routing.task_queue(capability, Priority.P1)) is not None
        if has:
            _remember(self._queued, capability)
        return has

    async def refuse_bytes(self, capabilities: Iterable[str]) -> None:
        """Raise InputError if a capability of a workflow takes or returns bytes, since workflows pass only JSON on.

        A capability that passes is not looked up again for 60 s; it also passes when the registry does not answer.

        Raises:
            InputError: when a living agent declares that one takes or returns bytes.
        """
        now = asyncio.get_running_loop().time()
        for name in capabilities:
            if self._registry is None or self._no_bytes.get(name, 0.0) > now:
                continue
            try:
                records = await self._registry.find(Search(capability=name))
            except RegistryUnavailable as error:
                log.debug("Whether a capability takes bytes is unknown", extra={"reason": str(error)})
                records = ()
            offers = [offer for record in records for offer in record.registration.capabilities if offer.name == name]
            if any(is_binary(offer.input_schema) or is_binary(offer.output_schema) for offer in offers):
                raise InputError(
                    "A workflow passes JSON on, and this capability takes or returns bytes",
                    capability=name,
                    fix="submit it as a direct task, and pass on a reference to where the bytes lie",
                )
            _remember(self._no_bytes, name)

    async def unknown(self, capability: str, **facts: object) -> UnknownCapability | Unroutable:
        """Return the error for a task that the broker routed to no queue: unknown capability, or missing binding."""
        offered = await self.registered()
        if capability in offered or await self._has_queue(capability):
            return Unroutable(
                "The capability is there, but nothing leads to its queue",
                capability=capability,
                **facts,
                fix=f"coditect topology apply --capability {capability}",
            )
        return UnknownCapability(
            "No agent offers this capability",
            capability=capability,
            **facts,
            nearest=nearest_names(capability, offered),
            fix="start an agent that declares it: coditect agent run FILE; what there is: coditect capability list",
        )


def _remember(known: dict[str, float], capability: str) -> None:
    if len(known) > MOST_KNOWN:
        known.clear()
    known[capability] = asyncio.get_running_loop().time() + KNOWN_SECONDS
