"""The look-up of capabilities for a client, in the broker's queues and in the registrations of living agents."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from coditect.broker.port import Broker
from coditect.errors import RegistryUnavailable, UnknownCapability, Unroutable
from coditect.model.capability import Priority, nearest_names
from coditect.registry.port import Registry
from coditect.wire import routing

log = logging.getLogger(__name__)


class CapabilityCatalogue:
    """A client's look-up of capabilities in the broker and the registry."""

    def __init__(self, broker: Broker, registry: Registry | None) -> None:
        self._broker = broker
        self._registry = registry

    async def registered(self) -> frozenset[str]:
        """Return the capabilities that living agents offer; an empty set when the registry does not answer."""
        if self._registry is not None:
            try:
                return await self._registry.capabilities()
            except RegistryUnavailable as error:
                log.debug("The nearest names are unknown", extra={"reason": str(error)})
        return frozenset()

    async def missing(self, capabilities: Iterable[str]) -> frozenset[str]:
        """Return those of the given capabilities that have no queue, so that no agent has ever declared them.

        Raises:
            BrokerUnavailable: when the broker does not answer.
        """
        names = dict.fromkeys(capabilities)
        return frozenset([
            name for name in names if await self._broker.stats(routing.task_queue(name, Priority.P1)) is None
        ])  # fmt: skip

    async def unknown(self, capability: str, **facts: object) -> UnknownCapability | Unroutable:
        """Return the error for a task that no queue took: an unknown capability, or a missing binding."""
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
