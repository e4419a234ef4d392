"""Use cases on the registry: list living agents and their capabilities, drain an agent, set log levels.

What asks the registry raises RegistryUnavailable, which is retryable, when the registry does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from coditect.broker.port import tell
from coditect.errors import NotFound, RegistryUnavailable, ResultTimeout
from coditect.model.capability import CapabilitySpec, check_capability_name, nearest_names
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord
from coditect.operations.connections import Connections
from coditect.registry.catalogue import find_known, get_known
from coditect.registry.port import Search
from coditect.wire import control_messages
from coditect.wire.control_messages import LogLevelOrder

POLL_SECONDS = 0.2
CONFIRM_SECONDS = 10.0
"""How long the broker may take to confirm a message to agents."""

Note = Callable[[str], None]
"""A callback that takes a sentence about something that a use case could not see."""


def unnoted(_: str) -> None:
    """Ignore a sentence about what could not be seen: the answer has the rest."""


@dataclass(frozen=True, slots=True)
class CapabilityOffer:
    """A capability with the agents that offer it, described as the latest started agent declares it."""

    spec: CapabilitySpec
    agents: tuple[str, ...]
    """The ids of the agents that offer the capability, sorted."""
    versions: tuple[str, ...]
    """The versions of the agents that offer the capability, sorted, each once."""


async def find_agents(opened: Connections, search: Search) -> tuple[AgentRecord, ...]:
    """Return the records of the living agents that match a search; HTTP agents not served yet are `starting`.

    A search for the status `offline` also finds agents that went away within a day.
    """
    async with opened.registry() as registry, opened.http_agents() as http_agents:
        return await find_known(registry, http_agents, search)


async def get_agent(opened: Connections, agent_id: AgentId) -> AgentRecord:
    """Return the record of an agent by its id: `starting` if nothing serves it yet, `offline` if it went away.

    Raises:
        NotFound: when no agent of the last day has the id; its fact `nearest` holds similar ids.
    """
    async with opened.registry() as registry, opened.http_agents() as http_agents:
        record = await get_known(registry, http_agents, agent_id)
        if record is not None:
            return record
        others = await registry.find(Search())
    nearest = nearest_names(agent_id, [one.agent_id for one in others])
    raise NotFound("No agent has this id", id=agent_id, nearest=nearest, fix="coditect agent list")


async def drain_agent(opened: Connections, agent_id: AgentId, *, wait_seconds: float | None = None) -> None:
    """Order an agent to drain (take nothing new, and end), and optionally wait until it has left the registry.

    Idempotent. With `wait_seconds=None` the call returns once the broker has the request.

    Raises:
        NotFound: when no agent has the id.
        ResultTimeout: when the agent is still there after the wait; it goes on draining.
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    async with opened.broker() as broker:
        message = control_messages.message(control_messages.DRAIN)
        if not await tell(broker, message, agent_id=agent_id, within_seconds=CONFIRM_SECONDS):
            raise NotFound("No agent has this id", id=agent_id, fix="coditect agent list")
    if wait_seconds is None:
        return
    async with opened.registry() as registry:
        try:
            async with asyncio.timeout(wait_seconds):
                while True:
                    if await registry.get(agent_id) is None:
                        return
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise ResultTimeout(
                "The agent is still draining", id=agent_id, fix="It goes on by itself; look again later."
            ) from error


async def find_offers(opened: Connections, search: Search) -> list[CapabilityOffer]:
    """Return the capabilities of the living agents that match a search, sorted by name."""
    return offers_of(await find_agents(opened, search))


def offers_of(records: Iterable[AgentRecord]) -> list[CapabilityOffer]:
    """Return the capabilities that agents offer, sorted by name."""
    specs: dict[str, CapabilitySpec] = {}
    agents: dict[str, dict[str, str]] = {}
    for record in sorted(records, key=lambda one: one.registration.started_at_ms):
        for spec in record.registration.capabilities:
            specs[spec.name] = spec
            agents.setdefault(spec.name, {})[record.agent_id] = record.registration.version
    return [
        CapabilityOffer(specs[name], tuple(sorted(agents[name])), tuple(sorted(set(agents[name].values()))))
        for name in sorted(specs)
    ]


async def get_offer(opened: Connections, name: str) -> CapabilityOffer:
    """Return a capability that a living agent offers, by its name.

    Raises:
        NotFound: when no living agent offers it; its fact `nearest` holds similar names.
    """
    found = await find_offers(opened, Search())
    offer = next((one for one in found if one.spec.name == name), None)
    if offer is None:
        nearest = nearest_names(name, [one.spec.name for one in found])
        fix = "coditect capability list"
        raise NotFound("No living agent offers this capability", capability=name, nearest=nearest, fix=fix)
    return offer


async def known_capabilities(opened: Connections, named: Iterable[str], *, note: Note = unnoted) -> tuple[str, ...]:
    """Return the given capability names, each once; without any, the names that living agents offer.

    Without a registry the result is empty, and `note` is called: a use case goes on with less.

    Raises:
        InputError: when a name is none of a capability.
    """
    given = tuple(dict.fromkeys(check_capability_name(name) for name in named))
    if given:
        return given
    try:
        async with opened.registry() as registry:
            return tuple(sorted(await registry.capabilities()))
    except RegistryUnavailable:
        note("The registry does not answer: only capabilities named with --capability are looked at.")
        return ()


def is_module(logger: str) -> bool:
    """Tell whether a logger is named after a module that is installed here, with or without the leading `coditect.`.

    The loggers of an agent's own modules may have other names, and agents elsewhere other modules.
    """
    return any(map(_is_installed, (f"coditect.{logger}", logger)))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a package above it is missing, or the name is none
        return False


async def set_log_level(opened: Connections, order: LogLevelOrder, *, agent_id: str | None = None) -> None:
    """Send a logger's level to every agent and dispatcher, or to one agent; idempotent.

    Raises:
        NotFound: when no agent has the id, or nothing runs that could hear it.
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    to_one = None if agent_id is None else AgentId(agent_id)
    async with opened.broker() as broker:
        try:
            heard = await tell(
                broker, control_messages.log_level(order), agent_id=to_one, within_seconds=CONFIRM_SECONDS
            )
        except NotFound:
            heard = False
    if not heard:
        sentence = "No agent and no dispatcher runs" if agent_id is None else "No agent has this id"
        raise NotFound(sentence, id=agent_id, fix="coditect agent list")
