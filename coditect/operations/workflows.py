"""Workflows: run and follow one, look at it, steer it, answer its approvals, and say why it failed.

What asks the control plane raises ControlPlaneRequired when no dispatcher answers, BrokerUnavailable (retryable) when
the broker does not, and NotFound for a workflow or a node that the control plane does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from coditect.errors import CoditectError, TaskError
from coditect.operations.connections import Connections
from coditect.workflow.definition import Definition, Each
from coditect.workflow.rows import ApprovalRow, AttemptRow, NodeRow, WorkflowRow
from coditect.workflow.states import TaskState, WorkflowState

if TYPE_CHECKING:  # it is heavy, and drawing a file does without
    from coditect.client.client import Client
    from coditect.client.workflow_run import Ending

MOST_NAMED = 5
"""The number of nodes that a sentence names."""
WORST_FIRST = (TaskState.DEAD, TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELED)
"""The states of nodes that ended without a value."""
_NEVER_RAN = frozenset({"predecessor", "canceled"})
_CONSEQUENCES = _NEVER_RAN | {"element"}
"""Reasons of nodes that ended without a value because other nodes did."""
_ENDED: Mapping[TaskState, str] = MappingProxyType(
    {TaskState.FAILED: "failed", TaskState.DEAD: "was given up", TaskState.REJECTED: "was rejected"}
)


class Steer(StrEnum):
    """An action on a workflow: cancel, pause or resume."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class WorkflowOrder:
    """A workflow to start: its definition, its JSON input and its options."""

    definition: Definition
    input: bytes
    key: str | None
    """The idempotency key: the same key gives the same workflow."""
    wait: str | None
    """How long the workflow is followed, as a duration; None: not at all."""


@dataclass(frozen=True, slots=True)
class AcceptedWorkflow:
    """A workflow that the control plane has."""

    id: str
    state: WorkflowState
    new: bool
    """Whether this start created the workflow; False when its key was known, so that it is the earlier one."""


@dataclass(frozen=True, slots=True)
class EndedWorkflow:
    """A workflow that was followed to its end."""

    row: WorkflowRow
    nodes: list[NodeRow]
    value: Any
    """The value; None when the workflow did not complete."""

    @property
    def error(self) -> TaskError | None:
        """The error of a workflow that did not complete, with its first cause; None of one that completed."""
        if self.row.state is WorkflowState.COMPLETED:
            return None
        ended = [node.name for node in self.nodes if node.state in WORST_FIRST]
        again = f"coditect workflow resume {self.row.workflow}"
        return TaskError(
            f"The workflow {'failed' if self.row.state is WorkflowState.FAILED else f'was {self.row.state.value}'}",
            cause=first_cause(self.nodes),
            workflow=self.row.workflow,
            reason=self.row.reason,
            nodes=tuple(_some(ended)),
            fix=f"`coditect workflow show {self.row.workflow}` has every attempt; mend the cause, then `{again}`",
        )


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """A workflow with its nodes and their attempts."""

    row: WorkflowRow
    nodes: list[NodeRow]
    attempts: list[AttemptRow]
    ending: Ending | None
    """The end of the one node that was asked for, if it has ended."""


class WorkflowWatcher(Protocol):
    """The caller of `run_workflow`, which learns how far the workflow is."""

    def uploaded(self, nodes: int, of: int) -> None:
        """Learn how many nodes of a large workflow were sent."""

    def accepted(self, accepted: AcceptedWorkflow) -> None:
        """Learn, once, that the control plane has the workflow."""

    def seen(self, row: WorkflowRow | None, /) -> None:
        """Learn the present state of a workflow that is followed; None stands for a look without an answer."""

    def asked(self, approval: ApprovalRow) -> None:
        """Learn, once each, an approval for which a workflow that is followed waits."""


async def run_workflow(
    opened: Connections, order: WorkflowOrder, watcher: WorkflowWatcher
) -> AcceptedWorkflow | EndedWorkflow:
    """Start a workflow and follow it to its end, or with `wait=None` return once it is accepted.

    A workflow goes on when the caller is canceled.

    Raises:
        InvalidWorkflow: when the definition is wrong, or no agent offers one of its capabilities.
        ResultTimeout: when it did not end in time; it goes on.
        CoditectError: the others of `Client.start`.
    """
    async with opened.fleet() as client:
        run = await client.start(order.definition, order.input, key=order.key, progress=watcher.uploaded)
        accepted = AcceptedWorkflow(run.id, WorkflowState.ACCEPTED if run.new else await run.state(), run.new)
        watcher.accepted(accepted)
        if order.wait is None:
            return accepted
        questions = _Questions(client, run.id, watcher)
        telling = asyncio.create_task(questions.tell())
        try:
            state = await run.wait(timeout=order.wait, seen=questions.look)
        finally:
            telling.cancel()
            await asyncio.wait([telling])
        nodes = [node async for node in run.nodes()]
        value = await run.result() if state is WorkflowState.COMPLETED else None
        return EndedWorkflow(await run.overview(), nodes, value)


class _Questions:
    """The search for the approvals that a followed workflow waits for."""

    def __init__(self, client: Client, workflow: str, watcher: WorkflowWatcher) -> None:
        self._client = client
        self._workflow = workflow
        self._watcher = watcher
        self._counts: Mapping[TaskState, int] = {}
        self._news = asyncio.Event()
        self._told: set[str] = set()

    def look(self, row: WorkflowRow | None) -> None:
        """Pass a look on; search for approvals when one waits and any count has changed."""
        self._watcher.seen(row)
        if row is not None and row.counts.get(TaskState.AWAITING_APPROVAL) and row.counts != self._counts:
            self._counts = row.counts
            self._news.set()

    async def tell(self) -> None:
        """Pass new approvals on until the call is canceled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                async for approval in self._client.approvals():
                    if approval.workflow == self._workflow and approval.node not in self._told:
                        self._told.add(approval.node)
                        self._watcher.asked(approval)
            except CoditectError:
                self._counts = {}  # the next look asks again


async def list_workflows(opened: Connections, *, state: WorkflowState | None, most: int) -> list[WorkflowRow]:
    """Return at most `most` workflows, or those in one state, the latest first."""
    async with opened.fleet() as client:
        return [row async for row in client.runs(state=state, most=most)]


async def show_nodes(opened: Connections, workflow: str) -> tuple[str, list[NodeRow]]:
    """Return the name of a workflow, and its nodes."""
    async with opened.fleet() as client:
        run = client.run(workflow)
        return (await run.overview()).name, [row async for row in run.nodes()]


async def show_workflow(opened: Connections, workflow: str, node: str | None) -> WorkflowDetails:
    """Return a workflow with all its nodes and attempts, or with those of one node, and that node's end."""
    async with opened.fleet() as client:
        run = client.run(workflow)
        overview = await run.overview()
        ending = None if node is None else await run.look(node)
        nodes = [row async for row in run.nodes() if node in (None, row.name)]
        attempts = [row async for row in run.attempts(node)]
        return WorkflowDetails(
            overview, nodes, attempts, ending if ending is not None and ending.state.terminal else None
        )


async def steer_workflow(opened: Connections, workflow: str, what: Steer, *, reason: str = "") -> WorkflowState:
    """Cancel, pause or resume a workflow, and return its state after that; `reason` is for a cancel."""
    async with opened.fleet() as client:
        run = client.run(workflow)
        match what:
            case Steer.CANCEL:
                await run.cancel(reason=reason)
            case Steer.PAUSE:
                await run.pause()
            case Steer.RESUME:
                await run.resume()
        return await run.state()


async def list_approvals(opened: Connections, *, most: int) -> list[ApprovalRow]:
    """Return at most `most` approvals that wait for an answer."""
    async with opened.fleet() as client:
        return [row async for row in client.approvals(most=most)]


async def answer_approval(
    opened: Connections, workflow: str, node: str, *, granted: bool, by: str, comment: str
) -> None:
    """Grant or deny an approval; the first answer counts."""
    async with opened.fleet() as client:
        await client.run(workflow).answer(node, granted=granted, by=by, comment=comment)


def first_cause(rows: Sequence[NodeRow]) -> str:
    """Return the first failure and its consequences: `fetch[12] failed: no such file; 4 nodes did not run`."""
    failed = [row for row in rows if row.state in _ENDED and row.reason not in _CONSEQUENCES]
    if not failed:
        return ""
    first = min(failed, key=lambda row: (row.finished_at_ms or 0, row.name))
    others = len(failed) - 1
    idle = sum(row.reason in _NEVER_RAN and not row.fence for row in rows)
    parts = [
        f"{first.name} {_ENDED[first.state]}: {first.message or first.reason}",
        f"{others} more failed by themselves" if others else "",
        f"{idle} {'node' if idle == 1 else 'nodes'} did not run" if idle else "",
    ]
    return "; ".join(part for part in parts if part)


def likely_mistakes(definition: Definition) -> list[str]:
    """Return what may be a mistake in a definition: maps that pass no element to their tasks, and `compensate`."""
    found = [
        f"{node.name} gives {{}} to each task; `input: {{$from: item}}` gives the element of its list."
        for node in definition.nodes
        if isinstance(node.work, Each) and node.work.call.input is None
    ]
    if nodes := definition.to_compensate:
        found.append(f"Nothing runs `compensate` yet; what these nodes do stays done: {', '.join(_some(nodes))}")
    return found


def in_order(rows: Sequence[NodeRow]) -> list[NodeRow]:
    """Return the nodes, each after its predecessors, by the longest way from a root; elements after their map."""
    after = {row.name: row.after for row in rows}
    depths: dict[str, int] = {}
    to_see = list(after)
    while to_see:
        name = to_see[-1]
        ahead = [one for one in after[name] if one in after and one not in depths]
        if ahead and name not in depths:
            to_see += ahead
            continue
        depths.setdefault(name, max((depths[one] + 1 for one in after[name] if one in depths), default=0))
        to_see.pop()

    def place(row: NodeRow) -> tuple[int, str, int]:
        name, _, index = row.name.partition("[")
        return depths.get(name, depths[row.name]), name, int(index[:-1]) if index[:-1].isdecimal() else -1

    return sorted(rows, key=place)


def _some(names: Sequence[str]) -> list[str]:
    return [*names[:MOST_NAMED], "…"] if len(names) > MOST_NAMED else list(names)
