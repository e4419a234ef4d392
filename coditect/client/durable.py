"""Durable tasks: workflows of one node, which the control plane keeps, so that any process may ask for them by id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from coditect.client.control_plane import PAUSES
from coditect.client.options import Options, deadline_at, delay_of
from coditect.client.workflow_run import EVENT_PATTERNS, Ending, Run
from coditect.errors import ControlPlaneRequired, NotFound, Retryable
from coditect.model.duration import Duration, milliseconds, seconds
from coditect.model.event import Event
from coditect.model.ids import AgentId, TaskId
from coditect.model.result import Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.wire.json import dumps
from coditect.workflow.definition import Call, Definition, Node
from coditect.workflow.rows import NodeRow
from coditect.workflow.states import TaskState
from coditect.workflow.template import LITERAL

NODE = "task"
"""The name of the only node in a durable task's workflow."""

_STATUSES = {
    TaskState.COMPLETED: Status.COMPLETED,
    TaskState.CANCELED: Status.CANCELED,
    TaskState.REJECTED: Status.REJECTED,
}


def durable_id(workflow: str) -> TaskId:
    """Return the task id of a workflow's only node: AMQP's `message_id`, the same over all attempts."""
    return TaskId(f"{workflow}:{NODE}")


def workflow_of(task_id: str) -> str | None:
    """Return the id of a durable task's workflow; None for the id of a direct task."""
    workflow, colon, node = task_id.rpartition(":")
    return workflow if colon and node == NODE else None


def durable_definition(capability: str, value: Any, options: Options, *, now_ms: int) -> Definition:
    """Return the definition of the workflow of one node that stands for a durable task.

    A deadline that is a duration counts from the end of the task's delay, as all of its time limits do.

    Raises:
        InputError: when the deadline or the delay is an instant that has passed, or the deadline ends before the delay.
    """
    delay, due_ms = delay_of(options, now_ms)
    call = Call(
        capability,
        {LITERAL: value},
        options.priority,
        timeout_ms=_ms(options.timeout),
        retry=None if options.max_attempts is None else Retry(max_attempts=options.max_attempts),
        start_within_ms=_ms(options.start_within),
        deadline_ms=_from(due_ms, options.deadline),
        delay=delay,
    )
    return Definition(capability, (Node(NODE, call),))


def _from(begin_ms: int, deadline: Duration | datetime | None) -> int | None:
    return deadline_at(deadline, begin_ms) - begin_ms if isinstance(deadline, datetime) else _ms(deadline)


def _ms(duration: Duration | None) -> int | None:
    return None if duration is None else milliseconds(duration)


class KeptOptions:
    """The part of a durable task's handle that asks the control plane for the outcome, state and events."""

    __slots__ = ("_task_id", "known", "run")

    def __init__(self, run: Run) -> None:
        self._task_id = durable_id(run.id)
        self.run = run
        """The handle of the task's workflow."""
        self.known: Outcome | None = None
        """The last outcome of the task that the control plane gave; None before the first."""

    async def outcome(self, *, timeout: Duration) -> Outcome:
        """Wait for the end of the task and return its outcome; see `Handle.outcome`."""
        if self.known is None or self.known.failure is not None:  # a redrive changes a failure, nothing a value
            self.known = await self._ended(seconds(timeout))
        return self.known

    async def _ended(self, seconds: float) -> Outcome:
        """Wait for the end of the task and return its outcome; ask a silent control plane again until the timeout."""
        now = asyncio.get_running_loop().time
        until = now() + seconds
        pauses = PAUSES.pauses()
        while True:
            ending = await self.run.ending(NODE, timeout=max(0.0, until - now()), alone=True)
            try:
                return _outcome(self._task_id, ending, await self.row())
            except (Retryable, ControlPlaneRequired):
                if now() >= until:
                    raise
            await asyncio.sleep(max(0.0, min(next(pauses), until - now())))

    async def row(self) -> NodeRow:
        """Return the present state of the durable task: the row of its workflow's only node.

        Raises:
            NotFound: when the id is that of a workflow of several nodes.
        """
        rows = [row async for row in self.run.nodes()]
        if len(rows) != 1:
            fix = f"coditect workflow show {self.run.id}"
            raise NotFound("This is no task but a workflow", workflow=self.run.id, nodes=len(rows), fix=fix)
        return rows[0]

    def events(self) -> AsyncIterator[Event]:
        """Return the events of the task, its node and its workflow from now on, to the end."""
        return self.run.told((*EVENT_PATTERNS, "task.*"), {self.run.id, self._task_id})


def _outcome(task_id: TaskId, ending: Ending, row: NodeRow) -> Outcome:
    status = _STATUSES.get(ending.state, Status.FAILED)
    failure = None if status is Status.COMPLETED else _failure(ending)
    return Outcome(
        status,
        dumps(ending.value if failure is None else failure.as_json()),
        task_id,
        task_id,
        agent_id=AgentId(row.agent) if row.agent else None,
        attempt=row.attempt,
        fence=row.fence,
        started_at_ms=row.started_at_ms,
        finished_at_ms=row.finished_at_ms,
        failure=failure,
    )


def _failure(ending: Ending) -> Failure:
    told = ending.failure or {}
    texts = {name: str(told.get(name) or "") for name in ("reason", "type", "message", "traceback", "fix")}
    return Failure(retryable=told.get("retryable") is True, **texts)
