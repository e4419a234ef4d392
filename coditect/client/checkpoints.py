"""The checkpoints of a started workflow, and the plan and the execution of its restore to one of them."""

from __future__ import annotations

from dataclasses import dataclass

from coditect.client.control_plane import ControlPlane, pages, rows_of
from coditect.errors import InputError, Retryable
from coditect.wire.control import Verb
from coditect.workflow.rows import CheckpointRow, DiscardedRow, RestoreRow

MOST_NAMED = 5
"""The largest number of nodes that the refusal of a restore names."""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """The plan of a restore to a checkpoint: the nodes whose work it discards, if their handlers may have begun."""

    checkpoint: str
    nodes: tuple[DiscardedRow, ...]
    """The nodes in the order of their names; the others that are discarded have done nothing."""
    token: str
    """The position of the workflow's history for which the plan was made; the restore is refused at another one."""

    @property
    def lasting(self) -> tuple[str, ...]:
        """The discarded nodes whose effects would stay: no compensation is declared, or the node has not completed."""
        return tuple(row.node for row in self.nodes if not row.compensated)


class Restorable:
    """The methods of a workflow's handle that make and list checkpoints, and restore the workflow to one of them."""

    __slots__ = ()

    id: str
    _control: ControlPlane

    async def checkpoint(self, name: str) -> None:
        """Name the workflow's present state as a checkpoint, so that the workflow can be restored to that state.

        A name that was given before now means this checkpoint. Every completed node is a checkpoint by itself.

        Raises:
            InputError: when the workflow has ended, or the name is that of a node, or no name.
        """
        await self._control.ask(
            Verb.CHECKPOINT, {"workflow": self.id, "checkpoint": name, "writer": self._control.name}
        )

    async def checkpoints(self) -> list[CheckpointRow]:
        """Return the checkpoints of the workflow, the earliest first: completed nodes, and states with a name."""
        rows = pages(self._control, Verb.CHECKPOINTS, "checkpoints", {"workflow": self.id})
        found = [CheckpointRow.read(row) async for row in rows]
        return sorted(found, key=lambda row: (row.at_ms, row.node == "", row.publication))

    async def restores(self) -> list[RestoreRow]:
        """Return the last restores of the workflow, at most 100, the earliest first."""
        answer = await self._control.ask(Verb.CHECKPOINTS, {"workflow": self.id, "limit": 1})
        return [RestoreRow.read(row) for row in rows_of(answer, "restores")]

    async def plan_restore(self, checkpoint: str) -> RestorePlan:
        """Return the plan of a restore to a checkpoint, with the nodes whose work it would discard; change nothing.

        Raises:
            NotFound: when the workflow has no such checkpoint.
            InputError: when the workflow cannot be restored: it was canceled or compensated, or its shared state of
                that time is not kept any more.
            Retryable: while an earlier restore, redrive or cancel is not done, or when the workflow goes on too fast.
        """
        asked = {"workflow": self.id, "checkpoint": checkpoint}
        answer = await self._control.ask(Verb.RESTORE_PLAN, asked)
        token, nodes = str(answer["token"]), [DiscardedRow.read(row) for row in rows_of(answer, "nodes")]
        while answer.get("next") is not None:
            answer = await self._control.ask(Verb.RESTORE_PLAN, {**asked, "after": answer["next"]})
            if answer["token"] != token:
                fix = "try again, or pause the workflow first"
                raise Retryable("The workflow went on while its restore was planned", workflow=self.id, fix=fix)
            nodes += [DiscardedRow.read(row) for row in rows_of(answer, "nodes")]
        return RestorePlan(checkpoint, tuple(nodes), token)

    async def restore(self, checkpoint: str | RestorePlan, *, by: str) -> None:
        """Bring the workflow back to a checkpoint: later nodes are compensated where declared, and run again.

        Running nodes are canceled, and results of discarded attempts are refused. The call returns when the restore is
        committed; the workflow goes on by itself. A plan is carried out as it is; with the name of a checkpoint nothing
        is discarded that cannot be undone. `by` is recorded.

        Raises:
            InputError: when a name is given and effects would remain (`nodes` has some), or as of `plan_restore`.
            VersionConflict: when a further node has begun or completed since the plan; nothing was changed.
        """
        plan = checkpoint if isinstance(checkpoint, RestorePlan) else await self.plan_restore(checkpoint)
        if plan is not checkpoint and plan.lasting:
            raise InputError(
                "The restore would discard nodes whose effects cannot be undone",
                workflow=self.id,
                nodes=plan.lasting[:MOST_NAMED],
                count=len(plan.lasting),
                fix="look at `await run.plan_restore(...)`, and give it in place of the name to accept that",
            )
        asked = {"workflow": self.id, "checkpoint": plan.checkpoint, "token": plan.token, "by": by}
        await self._control.ask(Verb.RESTORE, asked)
