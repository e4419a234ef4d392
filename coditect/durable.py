"""A durable task: kept by the control plane as a workflow of one node, so that any process may ask for it by its id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from coditect.broker.port import Broker
from coditect.errors import NotFound
from coditect.handle import DEFAULT_TIMEOUT, Handle
from coditect.listening import Listening
from coditect.model.duration import Duration, milliseconds, seconds
from coditect.model.event import Event
from coditect.model.ids import AgentId, TaskId
from coditect.model.json import dumps
from coditect.model.result import Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.model.task import Task
from coditect.model.workflow.definition import Call, Definition, Node
from coditect.model.workflow.rows import NodeRow
from coditect.model.workflow.states import TaskState
from coditect.model.workflow.template import LITERAL
from coditect.options import Options
from coditect.requests import Requests
from coditect.run import EVENT_PATTERNS, Ending, Run

NODE = "task"
"""The name of the one node."""

_STATUSES = {
    TaskState.COMPLETED: Status.COMPLETED,
    TaskState.CANCELED: Status.CANCELED,
    TaskState.REJECTED: Status.REJECTED,
}


def durable_id(workflow: str) -> TaskId:
    """The id of the task that is this workflow's only one: AMQP's `message_id`, the same over all attempts."""
    return TaskId(f"{workflow}:{NODE}")


def workflow_of(task_id: str) -> str | None:
    """The workflow of a durable task; None when the id is that of a direct one."""
    workflow, colon, node = task_id.rpartition(":")
    return workflow if colon and node == NODE else None


def durable_definition(capability: str, value: Any, options: Options) -> Definition:
    """The workflow of one node."""
    call = Call(
        capability,
        {LITERAL: value},
        options.priority,
        timeout_ms=_ms(options.timeout),
        retry=None if options.max_attempts is None else Retry(max_attempts=options.max_attempts),
        start_within_ms=_ms(options.start_within),
        deadline_ms=_ms(options.deadline),
    )
    return Definition(capability, (Node(NODE, call),))


def _ms(duration: Duration | None) -> int | None:
    return None if duration is None else milliseconds(duration)


class DurableHandle(Handle):
    """The handle of a durable task: what it tells and does goes through the control plane, from any process."""

    __slots__ = ("_known", "run")

    def __init__(self, task: Task, run: Run, *, requests: Requests, listening: Listening, broker: Broker) -> None:
        super().__init__(task, None, requests, listening, broker)
        self.run = run
        """Its workflow: every attempt, and a redrive."""
        self._known: Outcome | None = None

    @property
    def done(self) -> bool:
        """Whether the outcome is here: only what was asked for is."""
        return self._known is not None

    async def outcome(self, *, timeout: Duration = DEFAULT_TIMEOUT) -> Outcome:
        """How the task ended, whatever it is; may be asked again, by any process that has its id.

        Raises: ResultTimeout when it did not end in time (the task goes on); NotFound.
        """
        if self._known is None or self._known.failure is not None:  # a redrive changes a failure, nothing a value
            ending = await self.run.ending(NODE, timeout=seconds(timeout), alone=True)
            self._known = _outcome(self.task_id, ending, await self.row())
        return self._known

    async def row(self) -> NodeRow:
        """Where it is. Raises: NotFound when its id is that of a workflow of several nodes."""
        rows = [row async for row in self.run.nodes()]
        if len(rows) != 1:
            fix = f"coditect workflow show {self.run.id}"
            raise NotFound("This is no task but a workflow", workflow=self.run.id, nodes=len(rows), fix=fix)
        return rows[0]

    async def events(self) -> AsyncIterator[Event]:
        """What happens to this task, its node and its workflow from now on, to its end."""
        async for event in self.run.told((*EVENT_PATTERNS, "task.*"), {self.run.id, self.task_id}):
            yield event

    async def cancel(self, *, reason: str = "") -> None:
        """Cancels it: it ends as canceled unless it completed before."""
        await self.run.cancel(reason=reason)


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
