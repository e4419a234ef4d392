"""Use cases for checkpoints of a workflow: make and list them, plan a restore to one, and restore the workflow.

Each raises the errors of the methods of `coditect.client.checkpoints.Restorable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coditect.operations.connections import Connections
from coditect.workflow.rows import CheckpointRow

if TYPE_CHECKING:  # it is heavy, and `coditect workflow` is to begin quickly
    from coditect.client.checkpoints import RestorePlan


async def make_checkpoint(opened: Connections, workflow: str, name: str) -> None:
    """Make a checkpoint: give a name to the present state of a workflow, which can be restored to it later."""
    async with opened.fleet() as client:
        await client.run(workflow).checkpoint(name)


async def list_checkpoints(opened: Connections, workflow: str) -> list[CheckpointRow]:
    """Return the checkpoints of a workflow, the earliest first: completed nodes, and those made by request."""
    async with opened.fleet() as client:
        return await client.run(workflow).checkpoints()


async def plan_restore(opened: Connections, workflow: str, checkpoint: str) -> RestorePlan:
    """Return what the restore of a workflow to a checkpoint would discard."""
    async with opened.fleet() as client:
        return await client.run(workflow).plan_restore(checkpoint)


async def restore_workflow(opened: Connections, workflow: str, plan: RestorePlan, *, by: str) -> None:
    """Restore a workflow as planned; refused when it has gone on since the plan."""
    async with opened.fleet() as client:
        await client.run(workflow).restore(plan, by=by)
