"""The part of a client that lists the handoffs of running tasks, shows one, and withdraws one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cached_property

from coditect.client.control_plane import ControlPlane, pages
from coditect.collaboration.handoffs import HandoffRow
from coditect.model import arguments
from coditect.wire.control import Verb

LONGEST_TEXT_BYTES = 1_000


class KeptHandoffs:
    """The handoffs that the control plane keeps, each as long as its workflow."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def list(
        self,
        *,
        task: str | None = None,
        workflow: str | None = None,
        agent: str | None = None,
        open_only: bool = False,
        most: int | None = None,
    ) -> AsyncIterator[HandoffRow]:
        """Yield the handoffs that fit all given conditions, without their contexts; the earliest workflow's come first.

        The conditions: a task, a workflow, an agent that hands off, was asked or accepted, and whether they are open.

        Raises:
            ControlPlaneRequired: when no dispatcher answers.
        """
        wanted = {"task": task, "workflow": workflow, "agent": agent, "open": open_only}
        async for row in pages(self._control, Verb.HANDOFF_LIST, "handoffs", wanted, most=most):
            yield HandoffRow.of(row)

    async def show(self, handoff: str) -> HandoffRow:
        """Return a handoff, with the context that the task's owner passes on.

        Raises:
            NotFound: when it is unknown, or its workflow is not kept any more.
            ControlPlaneRequired: when no dispatcher answers.
        """
        named = arguments.text("handoff", handoff, shortest=1)
        return HandoffRow.of(await self._control.ask(Verb.HANDOFF_SHOW, {"handoff": named}))

    async def withdraw(self, handoff: str, *, by: str | None = None, reason: str = "") -> HandoffRow:
        """Withdraw an open handoff, so that the task stays with its owner; return the handoff as it is now. Idempotent.

        Raises:
            NotFound: when it is unknown, or its workflow is not kept any more.
            ControlPlaneRequired: when no dispatcher answers.
        """
        body = {"handoff": arguments.text("handoff", handoff, shortest=1), "by": by or self._control.name}
        told = arguments.text("reason", reason, longest=LONGEST_TEXT_BYTES)
        return HandoffRow.of(await self._control.ask(Verb.HANDOFF_WITHDRAW, body | {"reason": told}))


class ClientHandoffs:
    """The mixin that gives `Client` its attribute `handoffs`, for the handoffs of running tasks."""

    _control: ControlPlane

    @cached_property
    def handoffs(self) -> KeptHandoffs:
        """The handoffs of running tasks: `client.handoffs.list()`, `show(id)`, `withdraw(id)`."""
        return KeptHandoffs(self._control)
