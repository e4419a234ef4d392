"""The protocol by which use cases open connections to servers; each program, and each test, implements it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from coditect.broker.management import QueueRates
from coditect.broker.topology import Binding
from coditect.broker.topology_diff import PlannedBroker
from coditect.registry.port import Registry

if TYPE_CHECKING:  # it is heavy, and most use cases do without
    from coditect.client.client import Client


class Connections(Protocol):
    """The interface by which a function for operators connects to the broker, the registry and the control plane."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment variables of the process that connects."""

    def broker(self) -> AbstractAsyncContextManager[PlannedBroker]:
        """Return the broker as an async context manager that connects on entry.

        Raises:
            BrokerUnavailable: on entry, when the broker does not answer.
        """

    async def bindings(self) -> frozenset[Binding] | None:
        """Return the broker's bindings from its management API; None when no address of the API is known.

        Raises:
            ManagementUnavailable: when the management API does not answer.
        """

    async def queue_rates(self) -> Mapping[str, QueueRates] | None:
        """Return the message rates of queues, keyed by queue name; None when no management API's address is known.

        Raises:
            ManagementUnavailable: when the management API does not answer.
        """

    def registry(self) -> AbstractAsyncContextManager[Registry]:
        """Return the registry as an async context manager that connects on entry."""

    def http_agents(self) -> AbstractAsyncContextManager[Registry]:
        """Return the registry of all agents called over HTTP, as an async context manager that connects on entry."""

    def fleet(self) -> AbstractAsyncContextManager[Client]:
        """Return a client, as an async context manager that connects on entry.

        Raises:
            BrokerUnavailable: on entry, when the broker does not answer.
        """
