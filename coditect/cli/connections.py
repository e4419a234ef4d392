"""The connections that the commands need, as protocols: `compose` makes the real ones, a test its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol, cast

import typer

from coditect.broker.topology import Binding
from coditect.broker.topology_diff import PlannedBroker
from coditect.model.capability import Priority
from coditect.model.duration import Duration
from coditect.model.event import Event
from coditect.model.ids import AgentId, TaskId
from coditect.model.result import Outcome
from coditect.registry.port import Registry
from coditect.settings.settings import read_settings

if TYPE_CHECKING:  # it is heavy, and most commands do without
    from coditect.client.client import Client


class TaskHandle(Protocol):
    """The handle of a submitted task."""

    @property
    def task_id(self) -> str:
        """The id of the submitted task."""

    async def outcome(self, *, timeout: Duration) -> Outcome:
        """Wait for the end of the task and return its outcome.

        Raises:
            ResultTimeout: when no result came in time.
        """

    def events(self) -> AsyncIterator[Event]:
        """Return the events of the task."""


class TaskClient(Protocol):
    """The part of `coditect.Client` that the commands use."""

    async def submit(
        self,
        capability: str,
        value: object,
        *,
        priority: Priority,
        timeout: Duration | None,
        deadline: Duration | None,
        pin: AgentId | None,
        task_id: TaskId | None = None,
    ) -> TaskHandle:
        """Publish one task and return its handle."""

    async def cancel(self, task_id: str) -> None:
        """Ask every agent to end the task."""

    def events(self, pattern: str, *, of: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Return the events that match the pattern since the block was entered, or only those about subject `of`."""


class Connections(Protocol):
    """The factory of the connections that a command asks for."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment variables that the command sees."""

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

    def client(self) -> AbstractAsyncContextManager[TaskClient]:
        """Return a client of the fleet, to be entered.

        Raises:
            BrokerUnavailable: on entry, when the broker does not answer.
        """

    def fleet(self) -> AbstractAsyncContextManager[Client]:
        """Return the same client with all its methods, for commands that need the control plane."""


def connections(context: typer.Context) -> Connections:
    """Return the connections for the running command: a test's own, else the real ones of the settings."""
    if context.obj is None:
        from coditect.cli.compose import RealConnections

        context.obj = RealConnections(read_settings())
    return cast(Connections, context.obj)
