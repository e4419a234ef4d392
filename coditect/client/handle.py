"""The handle of a submitted task, by which its submitter waits for the result, reads events, and cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, overload

from coditect.blobs import fetched
from coditect.broker.port import Broker, tell
from coditect.client.options import Options, deadline_at, delay_of
from coditect.client.workflow_run import EVENT_PATTERNS, Ending, WorkflowRun
from coditect.codec import codec, value_of
from coditect.errors import (
    InputError,
    NotFound,
    ResultTimeout,
    SetupError,
    TaskCanceled,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskRejected,
)
from coditect.messaging.event_stream import EventStreams
from coditect.messaging.rpc import PartReader, Requests
from coditect.model.duration import Duration, milliseconds, seconds
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Event
from coditect.model.result import ENDINGS, EXPIRED, Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.model.task import Task
from coditect.wire import control_messages
from coditect.wire.json import dumps
from coditect.workflow.definition import Call, Definition, Node
from coditect.workflow.rows import NodeRow
from coditect.workflow.states import TaskState
from coditect.workflow.template import LITERAL

DURABLE_NODE = "task"
"""The name of the only node in a durable task's workflow."""

_STATUSES = {
    TaskState.COMPLETED: Status.COMPLETED,
    TaskState.CANCELED: Status.CANCELED,
    TaskState.REJECTED: Status.REJECTED,
}


def durable_id(workflow: str) -> TaskId:
    """Return the task id of a workflow's only node: AMQP's `message_id`, the same over all attempts."""
    return TaskId(f"{workflow}:{DURABLE_NODE}")


def workflow_of(task_id: str) -> str | None:
    """Return the id of a durable task's workflow; None for the id of a direct task."""
    workflow, colon, node = task_id.rpartition(":")
    return workflow if colon and node == DURABLE_NODE else None


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
    return Definition(capability, (Node(DURABLE_NODE, call),))


def _from(begin_ms: int, deadline: Duration | datetime | None) -> int | None:
    return deadline_at(deadline, begin_ms) - begin_ms if isinstance(deadline, datetime) else _ms(deadline)


def _ms(duration: Duration | None) -> int | None:
    return None if duration is None else milliseconds(duration)


def _outcome(task_id: TaskId, ending: Ending) -> Outcome:
    attempt = ending.attempt
    assert attempt is not None, "the end of a node has its attempt"
    status = _STATUSES.get(ending.state, Status.FAILED)
    failure = None if status is Status.COMPLETED else Failure.read(ending.failure or {})
    return Outcome(
        status,
        dumps(ending.value if failure is None else failure.as_json()),
        task_id,
        task_id,
        agent_id=AgentId(attempt.agent) if attempt.agent else None,
        attempt=attempt.attempt,
        fence=attempt.fence,
        started_at_ms=attempt.started_at_ms,
        finished_at_ms=attempt.finished_at_ms,
        failure=failure,
    )


T = TypeVar("T")

DEFAULT_RESULT_TIMEOUT: Duration = "10m"
CANCEL_CONFIRM_SECONDS = 10.0
LAST_EVENT_SECONDS = 1.0
"""How long after a task's outcome the event of the task's end may come."""


@dataclass(eq=False, repr=False, slots=True, weakref_slot=True)
class Handle:
    """The handle of a submitted task: waits for its result, reads its events, cancels it; see `Client.submit`.

    The handle of a durable task asks the control plane, from any process: `Client.task` makes it from the id alone.
    """

    _task: Task
    _requests: Requests
    _event_stream: EventStreams
    _broker: Broker
    _reply: asyncio.Future[Outcome] | None = None
    _parts: PartReader | None = None
    _run: WorkflowRun | None = None
    """The workflow of a durable task."""
    _known: Outcome | None = None
    """The last outcome of a durable task that the control plane gave."""

    @property
    def task_id(self) -> TaskId:
        """The id of the task, which is AMQP's `message_id`."""
        return self._task.id or TaskId("")

    @property
    def capability(self) -> str:
        """The capability that the task asks for; empty for a handle that `Client.task` made."""
        return self._task.capability

    @property
    def done(self) -> bool:
        """True when the outcome has arrived; for a durable task, when `outcome` or `result` has fetched it."""
        if self._run is not None:
            return self._known is not None
        return self._reply is not None and self._reply.done()

    @property
    def run(self) -> WorkflowRun:
        """The handle of a durable task's workflow, which lists every attempt and can redrive the task.

        Raises:
            InputError: when the task is a direct one.
        """
        if self._run is None:
            fix = "submit it with durable=True, or an idempotency key"
            raise InputError("A direct task has no record", task_id=self.task_id, fix=fix)
        return self._run

    async def row(self) -> NodeRow:
        """Return the present state of a durable task: the row of its workflow's only node.

        Raises:
            InputError: when the task is a direct one.
            NotFound: when the id is that of a workflow of several nodes.
        """
        rows = [row async for row in self.run.nodes()]
        if len(rows) != 1:
            fix = f"coditect workflow get {self.run.id}"
            raise NotFound("This is no task but a workflow", workflow=self.run.id, nodes=len(rows), fix=fix)
        return rows[0]

    async def outcome(self, *, timeout: Duration = DEFAULT_RESULT_TIMEOUT) -> Outcome:
        """Wait for the end of the task and return its outcome, a value or a failure; may be repeated.

        Raises:
            ResultTimeout: when no result came in time; the task goes on.
            InputError: when the task was submitted without results.
            SetupError: when the client was closed, or the handle forgotten, meanwhile.
            NotFound: when the control plane does not have the durable task.
            BlobUnavailable: when a large value cannot be fetched now; retryable.
            ClaimBroken: when the large value is missing or has another content.
            TooLarge: when the large value is over the limit of the blob store.
        """
        if self._run is not None:
            if self._known is None or self._known.failure is not None:  # a redrive changes a failure, nothing a value
                self._known = _outcome(self.task_id, await self._run.ending(DURABLE_NODE, timeout=timeout))
            return self._known
        reply = self._expected()
        if not reply.done() and not await _done_within(reply, seconds(timeout)):
            raise ResultTimeout("No result came in time; the task goes on", task_id=self.task_id, timeout=timeout)
        if reply.cancelled():
            raise SetupError("The client is closed", task_id=self.task_id, fix="wait for results before it closes")
        outcome = reply.result()
        return await fetched(self._requests.blobs, outcome) if outcome.claims else outcome

    def _expected(self) -> asyncio.Future[Outcome]:
        """Return the future of the reply.

        Raises:
            InputError: when the task was submitted without results.
            SetupError: when another event loop waits for the reply.
        """
        reply = self._reply
        if reply is None:
            raise InputError(
                "This task was submitted without results", task_id=self.task_id, fix="submit it with results=True"
            )
        if not reply.done() and reply.get_loop() is not asyncio.get_running_loop():
            fix = "wait in the event loop that submitted the task; threads share a Client.sync()"
            raise SetupError("The task was submitted in another event loop", task_id=self.task_id, fix=fix)
        return reply

    @overload
    async def result(self, *, timeout: Duration = ...) -> Any: ...
    @overload
    async def result(self, model: type[T], *, timeout: Duration = ...) -> T: ...
    async def result(self, model: Any = Any, *, timeout: Duration = DEFAULT_RESULT_TIMEOUT) -> Any:
        """Wait for the end of the task and return its value, validated as `model`; with `bytes`, return the raw body.

        Without a model the value is plain JSON, or bytes where the handler returns those.

        Raises:
            TaskFailed: when the task failed; this and the next three carry the failure's facts.
            TaskRejected: when the task was refused before it ran.
            TaskCanceled: when the task was canceled.
            TaskExpired: when the deadline passed before the end.
            ResultTimeout: when no result came in time; the task goes on.
            CoditectError: the other errors of `outcome`.
        """
        outcome = await self.outcome(timeout=timeout)
        if outcome.failure is not None:
            raise task_error(outcome)
        return value_of(outcome, model)

    async def stream(self, model: Any = Any, *, timeout: Duration = DEFAULT_RESULT_TIMEOUT) -> AsyncIterator[Any]:
        """Yield the parts of the result as the handler yields them, each validated as `model`; in order, each once.

        The task was submitted with `stream=True`. The agent sends at most 64 parts ahead of the loop, and then waits
        for it. After a lost connection the loop goes on with the next part. A loop that is left early, by `break`
        or an error in it, cancels the task; after any error raised here, another call goes on with the next part.
        `timeout` bounds the wait for each part. At the end `result` has the number of parts.

        Raises:
            StreamRestarted: when the task is executed again after parts of it were read: another call yields the parts
                of the new execution, from the first one.
            TaskError: when the task ended without a value, after the parts that it had sent: TaskFailed, TaskRejected,
                TaskCanceled or TaskExpired.
            ResultTimeout: when no part came in time, and the task goes on; or parts are missing at the end.
            InputError: when the task was submitted without `stream=True`, or its handler yields nothing.
            CoditectError: the other errors of `outcome`.
        """
        parts, reply = self._parts, self._expected()
        if parts is None:
            fix = "submit it with stream=True, or await its result, which has all parts"
            raise InputError("This task was submitted without a stream", task_id=self.task_id, fix=fix)
        decode, longest = codec(model).decode, seconds(timeout)
        try:
            while (body := await parts.next(reply, timeout_seconds=longest)) is not None:
                yield decode(body)
        except GeneratorExit:
            if not reply.done():
                await self._requests.withdraw(self._task)
            raise
        outcome = await self.outcome(timeout=timeout)
        if outcome.failure is not None:
            raise task_error(outcome)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of the task from now on, to its end; an event may be missed.

        For a durable task also the events of its node and its workflow; the last of these is never missed. Of a task
        without a result (`results=False`) the last may be, and then the events do not end: have a timeout of your own.
        """
        if self._run is not None:
            async for durable_event in self._run.told((*EVENT_PATTERNS, "task.*"), {self._run.id, self.task_id}):
                yield durable_event
            return
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        if self._reply is not None:
            self._reply.add_done_callback(lambda _: loop.call_later(LAST_EVENT_SECONDS, over.cancel))
        async with self._event_stream.stream("task.*", subjects=(self.task_id,)) as stream:
            while (event := await stream.next_before(over)) is not None:
                yield event
                if event.type in ENDINGS:
                    return

    async def cancel(self, *, reason: str = "") -> None:
        """Ask the agents, or the control plane for a durable task, to cancel the task.

        The outcome shows whether the request was in time.
        """
        if self._run is not None:
            await self._run.cancel(reason=reason)
            return
        message = control_messages.cancel(self.task_id, reason=reason)
        await tell(self._broker, message, within_seconds=CANCEL_CONFIRM_SECONDS)  # if no agent is there, nothing runs

    def forget(self) -> None:
        """Stop waiting for a direct task's result, and free its memory; the task goes on; does nothing if durable."""
        self._requests.forget(self._task.correlation_id or "")


async def _done_within(reply: asyncio.Future[Outcome], seconds_: float) -> bool:
    """Wait some seconds for a reply, without canceling the reply at a timeout; return whether the reply came.

    The function does what `asyncio.timeout` around a shield would do, at a third of the cost: every round trip waits
    here.
    """
    loop = asyncio.get_running_loop()
    turn = loop.create_future()

    def wake(_: object = None) -> None:
        if not turn.done():
            turn.set_result(None)

    timer = loop.call_later(seconds_, wake)
    reply.add_done_callback(wake)
    try:
        await turn
    finally:
        timer.cancel()
        reply.remove_done_callback(wake)
    return reply.done()


_ERRORS: dict[Status, type[TaskError]] = {
    Status.FAILED: TaskFailed,
    Status.CANCELED: TaskCanceled,
    Status.REJECTED: TaskRejected,
}


def task_error(outcome: Outcome) -> TaskError:
    """Return the exception that reports an outcome without a value: failed, rejected, canceled or expired."""
    failure = outcome.failure
    if failure is None:
        return TaskError("The task ended without a value", task_id=outcome.task_id)
    kind = TaskExpired if failure.reason in EXPIRED else _ERRORS.get(outcome.status, TaskError)
    facts = {
        "task_id": outcome.task_id,
        "agent": outcome.agent_id,
        "attempt": outcome.attempt,
        "reason": failure.reason,
        "type": failure.type,
        "message": failure.message,
        "fix": failure.fix,
    }
    how = "failed" if outcome.status is Status.FAILED else f"was {outcome.status.value}"
    error = kind(f"The task {how}", **{k: v for k, v in facts.items() if v})
    error.retryable = failure.retryable
    if failure.traceback:
        error.add_note(f"At the agent:\n{failure.traceback}")
    return error
