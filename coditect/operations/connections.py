"""The connections that the use cases ask for, as protocols: each program makes its own, and so does a test."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from coditect.broker.topology import Binding
from coditect.broker.topology_diff import PlannedBroker
from coditect.registry.port import Registry

if TYPE_CHECKING:  # it is heavy, and most use cases do without
    from coditect.client.client import Client


class Connections(Protocol):
    """The factory of the connections that a use case asks for."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment variables of the program."""

    def broker(self) -> AbstractAsyncContextManager[PlannedBroker]:
        """Return the broker, to be entered.

        Raises:
            BrokerUnavailable: on entry, when the broker does not answer.
        """

    async def bindings(self) -> frozenset[Binding] | None:
        """Return the bindings of the broker; None without its management API.

        Raises:
            ManagementUnavailable: when the management API does not answer.
        """

    def registry(self) -> AbstractAsyncContextManager[Registry]:
        """Return the registry, to be entered."""

    def client(self) -> AbstractAsyncContextManager[Client]:
        """Return a client for direct tasks and events, to be entered.

        Raises:
            BrokerUnavailable: on entry, when the broker does not answer.
        """

    def fleet(self) -> AbstractAsyncContextManager[Client]:
        """Return a client for what the control plane keeps, to be entered; it raises the same."""
