"""The part of a client that lists workflows, open approvals and dead nodes, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from coditect.client.control_plane import ControlPlane, pages
from coditect.wire.control import Verb
from coditect.workflow import fields
from coditect.workflow.rows import ApprovalRow, DeadRow, WorkflowRow
from coditect.workflow.states import WorkflowState


class ClientListings:
    """The listings of a `Client`."""

    _control: ControlPlane

    async def runs(
        self,
        *,
        state: WorkflowState | None = None,
        name: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        labels: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> AsyncIterator[WorkflowRow]:
        """Yield the workflows that the control plane has, the latest first, or those of one state and one name.

        `labels` are those that a workflow must have, all of them: `{"team": "x"}`.
        `since` and `until` are instants with their offset from UTC: of the start, or of the tick of a schedule.

        Raises:
            InputError: when `since` or `until` is no such instant, or a label is wrong.
        """
        asked: dict[str, Any] = {} if state is None else {"state": state.value}
        asked |= {} if name is None else {"name": name}
        asked |= {"labels": fields.labels(labels)} if labels else {}
        for bound, instant in (("since", since), ("until", until)):
            if instant is not None:
                asked[bound] = fields.instant_ms(fields.instant(instant))
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
