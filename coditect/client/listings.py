"""The part of a client that lists workflows, open approvals and dead nodes, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator

from coditect.client.control_plane import ControlPlane, pages
from coditect.wire.control import Verb
from coditect.workflow.rows import ApprovalRow, DeadRow, WorkflowRow
from coditect.workflow.states import WorkflowState


class ClientListings:
    """The listings of a `Client`."""

    _control: ControlPlane

    async def runs(self, *, state: WorkflowState | None = None, most: int | None = None) -> AsyncIterator[WorkflowRow]:
        """Yield the workflows that the control plane has, or those in one state, the latest first."""
        asked = {} if state is None else {"state": state.value}
        async for row in pages(self._control, Verb.LIST, "workflows", asked, most=most):
            yield WorkflowRow.read(row)

    async def approvals(self, *, most: int | None = None) -> AsyncIterator[ApprovalRow]:
        """Yield the approvals that wait for an answer; `run(row.workflow).answer(row.node, ...)` answers one."""
        async for row in pages(self._control, Verb.APPROVALS, "approvals", {}, most=most):
            yield ApprovalRow.read(row)

    async def dead_nodes(self, *, most: int | None = None) -> AsyncIterator[DeadRow]:
        """Yield the workflow nodes whose agents died until no attempt was left.

        `run(row.workflow).redrive(row.node.name)` runs a node again.
        """
        async for row in pages(self._control, Verb.DEAD, "dead", {}, most=most):
            yield DeadRow.read(row)
