"""The routes of tasks: submit one, wait for its result or ask for it later."""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from coditect.api.access.roles import Role
from coditect.api.routes.events import EventsResponse
from coditect.api.routes.parameters import ApiRequest, IdempotencyKey, Span, Wait, Who, request_key
from coditect.api.services import Services, needs
from coditect.client.direct import LONGEST_DIRECT_TIMEOUT_SECONDS
from coditect.client.handle import Handle
from coditect.client.options import Options, RequestKey
from coditect.errors import InputError, ResultTimeout, StreamRestarted, TaskError
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import seconds
from coditect.model.ids import AgentId
from coditect.model.strategy import Strategy
from coditect.operations import tasks
from coditect.operations.diagnosis.explain import TaskQuestion
from coditect.operations.diagnosis.why_not import DEFAULT_MOST, WhyNot, why_not_task
from coditect.operations.documents.tasks import SUBMITTED, TaskDocument
from coditect.wire.json import dumps

log = logging.getLogger(__name__)

LONGEST_PAUSE = "10m"
"""How long the next part of a result is awaited, unless the request says it."""

router = APIRouter(prefix="/tasks", tags=["tasks"])


class TaskRequest(ApiRequest):
    """A task to submit: its capability, its input, and options such as priority, time limits and durability."""

    capability: str = Field(description="What to do.", examples=["code.review"], max_length=100)
    input: Any = Field(default=None, description="The input, as the capability's input schema describes it.")
    input_base64: str | None = Field(
        default=None, description="In place of `input`, bytes in Base64 for a handler of bytes."
    )
    priority: Priority = Priority.P1
    timeout: Span | None = Field(default=None, description="Longest run of one attempt.")
    deadline: Span | None = Field(default=None, description="How long from now the result is wanted.")
    start_within: Span | None = Field(default=None, description="How long the task may wait before its start.")
    agent: str | None = Field(default=None, description="The id of the preferred agent.", min_length=1, max_length=100)
    strategy: Strategy | None = Field(default=None, description="The strategy by which an agent is picked.")
    max_attempts: int | None = Field(default=None, ge=1, le=1_000)
    durable: bool = Field(default=False, description="Whether the control plane keeps the task and its result.")
    delay: Span | None = Field(default=None, description="How long to keep the task before it starts; durable.")
    at: datetime | None = Field(default=None, description="The instant at which the task starts; durable.")

    def value(self) -> Any:
        """Return the task's input: the JSON value, or the bytes that `input_base64` encodes.

        Raises:
            InputError: when the input is given twice, or is no Base64.
        """
        if self.input_base64 is None:
            return self.input
        if self.input is not None:
            raise InputError("A task has one input", fix="input, or input_base64")
        try:
            return b64decode(self.input_base64, validate=True)
        except ValueError as error:
            raise InputError("input_base64 is no Base64", fix="encode the bytes by RFC 4648, with padding") from error

    def options(self, key: RequestKey | None) -> Options:
        """Return the options of the task; an idempotency key makes the task durable.

        Raises:
            InputError: when one is wrong, or two contradict each other.
        """
        chosen = Options(
            priority=self.priority,
            timeout=self.timeout,
            deadline=self.deadline,
            start_within=self.start_within,
            pin=None if self.agent is None else AgentId(self.agent),
            strategy=self.strategy,
            max_attempts=self.max_attempts,
            durable=self.durable,
            delay=self.delay,
            at=self.at,
            idempotency_key=key,
        )
        if not chosen.kept and self.timeout is not None and seconds(self.timeout) > LONGEST_DIRECT_TIMEOUT_SECONDS:
            fix = 'make it durable: "durable": true'
            raise InputError("A direct task runs at most 25 minutes", timeout=self.timeout, fix=fix)
        return chosen


class CancelDocument(BaseModel):
    """The answer to a cancel: whether the control plane has it, or every agent was told."""

    durable: bool = Field(description="Whether the control plane has it; False when it went to every agent.")


@router.post(
    "",
    dependencies=[needs(Role.OPERATOR)],
    responses={202: {"model": TaskDocument, "description": "The task was taken and has not ended."}},
)
async def submit_task(
    order: TaskRequest,
    services: Services,
    who: Who,
    response: Response,
    wait: Wait = None,
    key: IdempotencyKey = None,
) -> TaskDocument:
    """Submit a task, and return its id (202); with `wait`, its value or failure if it ends in time (200).

    A direct task's result is kept by this API process alone, with those of the last 1,000. The control plane keeps the
    result of a task that is `durable`, or has an Idempotency-Key, and any API process has it.
    """
    kept_key = request_key(who, key, order)
    async with services.opened.client() as client:
        handle = await client.submit(order.capability, order.value(), options=order.options(kept_key))
    if wait is not None and (ended := await _end_of(handle, wait)) is not None:
        handle.forget()
        return ended
    if not tasks.is_durable(handle.task_id):
        services.direct_tasks.add(handle)
    response.status_code = HTTPStatus.ACCEPTED
    response.headers["location"] = f"/v1/tasks/{handle.task_id}"
    return TaskDocument(handle.task_id, SUBMITTED)


async def _streamed(order: TaskRequest, services: Services) -> AsyncIterator[Handle]:
    """Submit a task whose result comes in parts, and yield its handle; cancel the task afterwards unless it has ended.

    It has not ended, for example, when the reader of the parts has gone.
    """
    async with services.opened.client() as client:
        handle = await client.submit(order.capability, order.value(), options=replace(order.options(None), stream=True))
    try:
        yield handle
    finally:
        if handle.done:
            handle.forget()
        else:
            await handle.cancel(reason="its reader has gone")


@router.post(
    "/stream",
    dependencies=[needs(Role.OPERATOR)],
    response_class=EventsResponse,
    responses={200: {"description": "The parts.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream_task(handle: Annotated[Handle, Depends(_streamed)], wait: Wait = None) -> EventsResponse:
    """Submit a task and follow the parts of its result as server-sent events; `wait` bounds the wait for each.

    The event `submitted` has the task's id, events without a name are the parts, `restarted` says that they begin
    again, and `end` has the task as `GET` shows it. A task whose reader goes away is canceled.
    """
    return EventsResponse(_parts(handle, wait or LONGEST_PAUSE))


async def _parts(handle: Handle, wait: str) -> AsyncIterator[bytes]:
    yield b'event: submitted\ndata: {"task_id":"%b"}\n\n' % handle.task_id.encode()
    ended = TaskDocument(handle.task_id, SUBMITTED)
    try:
        async for part in _whole(handle, wait):
            yield (
                b"event: restarted\ndata: {}\n\n"
                if isinstance(part, StreamRestarted)
                else b"data: %b\n\n" % dumps(part)
            )
        ended = TaskDocument.of(handle.task_id, await handle.outcome(timeout=wait))
    except ResultTimeout:
        log.info("A stream of parts ends: none came in time", extra={"task_id": handle.task_id, "wait": wait})
    yield b"event: end\ndata: %b\n\n" % dumps(asdict(ended))


async def _whole(handle: Handle, wait: str) -> AsyncIterator[Any]:
    """Yield the parts of a task's result; yield StreamRestarted when the task runs again, and just end when it fails.

    After a StreamRestarted the parts come again from the first one.
    """
    while True:
        try:
            async for part in handle.stream(timeout=wait):
                yield part
            return
        except StreamRestarted as restarted:
            yield restarted
        except ResultTimeout:
            raise
        except TaskError:
            return


@router.get("/{task_id}")
async def get_task(task_id: str, services: Services, wait: Wait = None) -> TaskDocument:
    """Show a task's status, and its value or failure if it has ended; wait for its end at most as long as `wait`."""
    if tasks.is_durable(task_id):
        if wait is not None:
            async with services.opened.fleet() as client:
                await _end_of(client.task(task_id), wait)
        return TaskDocument.of_durable(task_id, await tasks.get_task(services.opened, task_id))
    handle = services.direct_tasks.get(task_id)
    ended = await _end_of(handle, wait or "0s")
    return ended or TaskDocument(task_id, SUBMITTED)


@router.post("/{task_id}/cancel", dependencies=[needs(Role.OPERATOR)])
async def cancel_task(task_id: str, services: Services) -> CancelDocument:
    """Cancel a task: a durable one by the control plane, a direct one by a message to every agent, at best effort."""
    report = await tasks.cancel_task(services.opened, task_id)
    if report.error is not None:
        raise report.error
    return CancelDocument(durable=report.durable)


@router.get("/{task_id}/why-not")
async def why_not_task_runs(
    task_id: str, services: Services, capability: str | None = None, priority: Priority = Priority.P1
) -> WhyNot:
    """Say where a direct task is, also in the queues of `capability`, and for each agent whether it would take it."""
    question = None if capability is None else TaskQuestion(check_capability_name(capability), priority)
    return await why_not_task(services.opened, task_id, question, most=DEFAULT_MOST)


async def _end_of(handle: Handle, wait: str) -> TaskDocument | None:
    """Wait for the end of a task; return its status with its value or failure; None when it did not end in time."""
    try:
        return TaskDocument.of(handle.task_id, await handle.outcome(timeout=wait))
    except ResultTimeout:
        return None
