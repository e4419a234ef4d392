"""What the commands need of the outside, as protocols: `compose` gives the real ones, a test its own."""

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
    """A submitted task."""

    @property
    def task_id(self) -> str:
        """Its id."""

    async def outcome(self, *, timeout: Duration) -> Outcome:
        """How it ended. Raises: ResultTimeout."""

    def events(self) -> AsyncIterator[Event]:
        """Its progress."""


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
        """Publishes a task."""

    async def cancel(self, task_id: str) -> None:
        """Asks every agent to end it."""

    def events(self, pattern: str, *, of: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Every event that matches, or of those what is about one subject, from when the block is entered."""


class Connections(Protocol):
    """Opens what a command asks for."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of this process."""

    def broker(self) -> AbstractAsyncContextManager[PlannedBroker]:
        """The broker. Raises: BrokerUnavailable."""

    async def bindings(self) -> frozenset[Binding] | None:
        """Those of the broker; None without its management API. Raises: ManagementUnavailable."""

    def registry(self) -> AbstractAsyncContextManager[Registry]:
        """The registry."""

    def client(self) -> AbstractAsyncContextManager[TaskClient]:
        """A client of the fleet. Raises: BrokerUnavailable."""

    def fleet(self) -> AbstractAsyncContextManager[Client]:
        """The same client with all that it can, for what needs the control plane."""


def connections(context: typer.Context) -> Connections:
    """The connections of this run: a test's own, else the real ones of the settings."""
    if context.obj is None:
        from coditect.cli.compose import RealConnections

        context.obj = RealConnections(read_settings())
    return cast(Connections, context.obj)
