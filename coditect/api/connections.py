"""The connections of a long-running program: registry and client are opened once, and lent to every use case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext

from coditect.broker.management import Management, QueueRates
from coditect.broker.topology import Binding
from coditect.broker.topology_diff import PlannedBroker
from coditect.client.client import Client
from coditect.registry.port import Registry


class SharedConnections:
    """An open registry and client, which all use cases share, and a new broker connection for each that needs one.

    What looks through queues (dead letters, where a task is) needs a broker's connection for itself alone.
    """

    def __init__(
        self,
        *,
        broker: Callable[[], AbstractAsyncContextManager[PlannedBroker]],
        registry: Registry,
        http_agents: Registry,
        client: Client,
        environ: Mapping[str, str],
        management: Management | None = None,
        vhost: str = "/",
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._http_agents = http_agents
        self._client = client
        self._environ = environ
        self._management = management
        self._vhost = vhost

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment variables of the API process."""
        return self._environ

    def broker(self) -> AbstractAsyncContextManager[PlannedBroker]:
        """Return a connection to the broker for one use case, not opened yet."""
        return self._broker()

    async def bindings(self) -> frozenset[Binding] | None:
        """Return the broker's bindings from its management API; None when no such API is set."""
        return None if self._management is None else await self._management.bindings(self._vhost)

    async def queue_rates(self) -> Mapping[str, QueueRates] | None:
        """Return the message rates of queues, keyed by queue name; None when no management API is set."""
        return None if self._management is None else await self._management.queue_rates(self._vhost)

    def registry(self) -> AbstractAsyncContextManager[Registry]:
        """Return a context manager that yields the registry, and leaves it open."""
        return nullcontext(self._registry)

    def http_agents(self) -> AbstractAsyncContextManager[Registry]:
        """Return a context manager that yields the registry of HTTP agents, and leaves it open."""
        return nullcontext(self._http_agents)

    def fleet(self) -> AbstractAsyncContextManager[Client]:
        """Return a context manager that yields the client, and leaves it open."""
        return nullcontext(self._client)
