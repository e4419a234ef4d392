"""The look-up of capabilities for a client, in the broker's queues and in the registrations of living agents."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from coditect.broker.port import Broker
from coditect.codec import is_binary
from coditect.errors import InputError, RegistryUnavailable, UnknownCapability, Unroutable
from coditect.model.capability import Priority, nearest_names
from coditect.registry.port import Registry, Search
from coditect.wire import routing

log = logging.getLogger(__name__)

KNOWN_SECONDS = 60.0
"""How long a client counts a capability as one without bytes after a look; the agent refuses what gets through."""
MOST_KNOWN = 10_000


class CapabilityCatalogue:
    """A client's look-up of capabilities in the broker and the registry."""

    def __init__(self, broker: Broker, registry: Registry | None) -> None:
        self._broker = broker
        self._registry = registry
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

        Raises:
            BrokerUnavailable: when the broker does not answer.
        """
        names = dict.fromkeys(capabilities)
        return frozenset([
            name for name in names if await self._broker.stats(routing.task_queue(name, Priority.P1)) is None
        ])  # fmt: skip

    async def refuse_bytes(self, capabilities: Iterable[str]) -> None:
        """Raise InputError if a capability of a workflow takes or returns bytes, since workflows pass only JSON on.

        A capability that passes is not looked up again for 60 s; it also passes when the registry does not answer.

        Raises:
            InputError: when a living agent declares that one takes or returns bytes.
        """
        now = asyncio.get_running_loop().time()
        if len(self._no_bytes) > MOST_KNOWN:
            self._no_bytes.clear()
        for name in capabilities:
            if self._registry is None or self._no_bytes.get(name, 0.0) > now:
                continue
            try:
                records = await self._registry.find(Search(capability=name))
            except RegistryUnavailable as error:
                log.debug("Whether a capability takes bytes is unknown", extra={"reason": str(error)})
                records = ()
            offers = [offer for one in records for offer in one.registration.capabilities if offer.name == name]
            if any(is_binary(one.input_schema) or is_binary(one.output_schema) for one in offers):
                raise InputError(
                    "A workflow passes JSON on, and this capability takes or returns bytes",
                    capability=name,
                    fix="submit it as a direct task, and pass on a reference to where the bytes lie",
                )
            self._no_bytes[name] = now + KNOWN_SECONDS

    async def unknown(self, capability: str, **facts: object) -> UnknownCapability | Unroutable:
        """Return the error for a task that the broker routed to no queue: unknown capability, or missing binding."""
        offered = await self.registered()
        if capability in offered or not await self.missing((capability,)):
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
