"""The routes of tasks, of broadcasts (one request to several agents), and of dead letters."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Annotated, Any, Required, cast

from fastapi import Body, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, with_config

from coditect.api.live import PING_SECONDS
from coditect.api.problems import ProblemDocument, problem_of
from coditect.api.routes.events import EventsResponse
from coditect.api.routes.parameters import (
    ApiRequest,
    IdempotencyKey,
    Limit,
    ShortSpan,
    Wait,
    Who,
    request_key,
    while_connected,
)
from coditect.api.services import Fleet, GuardedRouter, Services
from coditect.client.client import Client
from coditect.client.direct import LONGEST_DIRECT_TIMEOUT_SECONDS, Answer
from coditect.client.handle import Handle
from coditect.client.options import RequestKey, TaskOptions, options_of_task
from coditect.errors import InputError, ResultTimeout, StreamRestarted, TaskError
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import seconds
from coditect.model.option import options_of
from coditect.operations import dead_letters as dead
from coditect.operations import tasks
from coditect.operations.dead_letters import DeadQueue, Selection
from coditect.operations.documents import (
    SUBMITTED,
    DeadNodeDocument,
    LetterDocument,
    SettledDocument,
    TaskDocument,
    WholeLetter,
)
from coditect.operations.explain import TaskQuestion
from coditect.operations.locate import DEFAULT_MOST, WhyNot, why_not_task
from coditect.wire.json import dumps

log = logging.getLogger(__name__)

LONGEST_PAUSE = "10m"
"""How long the next part of a result is awaited, unless the request says it."""

task_router = GuardedRouter(prefix="/tasks", tags=["tasks"])


@with_config(ConfigDict(extra="forbid"))
class TaskRequest(TaskOptions, total=False):
    """A task to submit: its capability, its input, and options such as priority, time limits and durability."""

    capability: Required[Annotated[str, Field(description="What to do.", examples=["code.review"], max_length=100)]]
    input: Annotated[Any, Field(description="The input, as the capability's input schema describes it.")]
    input_base64: Annotated[str | None, Field(description="In place of `input`, bytes in Base64.")]
    durable: Annotated[bool, Field(description="Whether the control plane keeps the task and its result.")]


TaskBody = Annotated[TaskRequest, Body()]


async def _submitted(client: Client, order: TaskRequest, *, key: RequestKey | None, stream: bool = False) -> Handle:
    """Submit the task of a request; an idempotency key makes the task durable.

    Raises:
        InputError: when an option is wrong, two contradict each other, or the input is given twice or is no Base64.
    """
    fields: dict[str, Any] = {**order}
    capability, value, encoded = fields.pop("capability"), fields.pop("input", None), fields.pop("input_base64", None)
    options = options_of_task(cast(TaskOptions, fields), idempotency_key=key, stream=stream)
    if not options.kept and seconds(options.timeout or 0) > LONGEST_DIRECT_TIMEOUT_SECONDS:
        fix = 'make it durable: "durable": true'
        raise InputError("A direct task runs at most 25 minutes", timeout=options.timeout, fix=fix)
    if encoded is not None and value is not None:
        raise InputError("A task has one input", fix="input, or input_base64")
    try:
        value = value if encoded is None else b64decode(encoded, validate=True)
    except ValueError as error:
        raise InputError("input_base64 is no Base64", fix="encode the bytes by RFC 4648, with padding") from error
    return await client.submit(capability, value, options=options)


class CancelDocument(BaseModel):
    """The answer to a cancel: whether the control plane has it, or every agent was told."""

    durable: bool = Field(description="Whether the control plane has it; False when it went to every agent.")


@task_router.post(
    "",
    responses={202: {"model": TaskDocument, "description": "The task was taken and has not ended."}},
)
async def submit_task(
    order: TaskBody,
    services: Services,
    client: Fleet,
    who: Who,
    response: Response,
    wait: Wait = None,
    key: IdempotencyKey = None,
) -> TaskDocument:
    """Submit a task, and return its id (202); with `wait`, its value or failure if it ends in time (200).

    A direct task's result is kept by this API process alone, with those of the last 1,000. The control plane keeps the
    result of a task that is `durable`, or has an Idempotency-Key, and any API process has it.
    """
    defaults = {name: option.default for name, (_, option) in options_of(TaskOptions).items()} | {"durable": False}
    chosen = {name: value for name, value in order.items() if value != defaults.get(name)}
    kept_key = request_key(who, key, chosen)
    handle = await _submitted(client, order, key=kept_key)
    if wait is not None and (ended := await _end_of(handle, wait)) is not None:
        handle.forget()
        return ended
    if not tasks.is_durable(handle.task_id):
        services.direct_tasks.add(handle)
    response.status_code = HTTPStatus.ACCEPTED
    response.headers["location"] = f"/v1/tasks/{handle.task_id}"
    return TaskDocument(handle.task_id, SUBMITTED)


async def _streamed(order: TaskBody, client: Fleet) -> AsyncIterator[Handle]:
    """Submit a task whose result comes in parts, and yield its handle; cancel the task afterwards unless it has ended.

    It has not ended, for example, when the reader of the parts has gone.
    """
    handle = await _submitted(client, order, key=None, stream=True)
    try:
        yield handle
    finally:
        if handle.done:
            handle.forget()
        else:
            await handle.cancel(reason="its reader has gone")


@task_router.post(
    "/stream",
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


@task_router.get("/{task_id}")
async def get_task(task_id: str, services: Services, client: Fleet, wait: Wait = None) -> TaskDocument:
    """Show a task's status, and its value or failure if it has ended; wait for its end at most as long as `wait`."""
    if tasks.is_durable(task_id):
        if wait is not None:
            await _end_of(client.tasks.get(task_id), wait)
        return TaskDocument.of_durable(task_id, await tasks.get_task(services.opened, task_id))
    handle = services.direct_tasks.get(task_id)
    ended = await _end_of(handle, wait or "0s")
    return ended or TaskDocument(task_id, SUBMITTED)


@task_router.post("/{task_id}/cancel")
async def cancel_task(task_id: str, services: Services) -> CancelDocument:
    """Cancel a task: a durable one by the control plane, a direct one by a message to every agent, at best effort."""
    report = await tasks.cancel_task(services.opened, task_id)
    if report.error is not None:
        raise report.error
    return CancelDocument(durable=report.durable)


@task_router.get("/{task_id}/why-not")
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


REFUSAL_SECONDS = 2.0
"""How long a stream waits for a first answer, or for the error of a wrong request, before its headers are sent."""

broadcast_router = GuardedRouter(prefix="/broadcasts", tags=["broadcasts"])


class BroadcastRequest(ApiRequest):
    """A broadcast: a request that each of several agents answers by itself, within the given time."""

    capability: str = Field(description="What to do.", examples=["plan.vote"], max_length=100)
    input: Any = Field(default=None, description="The input, as the capability's input schema describes it.")
    agents: list[str] | None = Field(
        default=None, max_length=1_000, description="Ids or names; without them all that offer the capability."
    )
    timeout: ShortSpan = Field(default="30s", description="How long the agents have for their answers; up to 5m.")
    priority: Priority = Priority.P1


@dataclass(frozen=True, slots=True)
class AnswerDocument:
    """The answer of one agent to a broadcast: its result, or the error that prevented one."""

    agent: str
    """The agent as the request names it."""
    agent_id: str | None
    """The process that was asked."""
    answered: bool
    """Whether there is a value."""
    value: Any = None
    value_base64: str | None = None
    """A value of bytes, in Base64."""
    error: ProblemDocument | None = None

    @classmethod
    def of(cls, answer: Answer) -> AnswerDocument:
        """Convert an agent's answer to plain values for answers in JSON."""
        if answer.error is not None:
            return cls(answer.agent, answer.agent_id, answered=False, error=problem_of(answer.error))
        if isinstance(answer.value, bytes):
            encoded = b64encode(answer.value).decode()
            return cls(answer.agent, answer.agent_id, answered=True, value_base64=encoded)
        return cls(answer.agent, answer.agent_id, answered=True, value=answer.value)


@dataclass(frozen=True, slots=True)
class BroadcastDocument:
    """The answers of all agents, in the order in which they came."""

    answers: list[AnswerDocument]


_AS_JSON = TypeAdapter(AnswerDocument)


@dataclass(slots=True, eq=False)
class Asking:
    """A broadcast whose answers still come in: `wait` for the next answer as often as needed, then `take` it."""

    answers: AsyncGenerator[Answer, None]
    _next: asyncio.Future[Answer | None] | None = None

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the next answer or the end, at most some seconds; tell whether it is there, for `take`.

        Raises:
            CoditectError: the errors of `Client.ask_all`.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self.answers, None))
        await asyncio.wait({self._next}, timeout=seconds)
        if self._next.done():
            self._next.result()
        return self._next.done()

    def take(self) -> AnswerDocument | None:
        """Return the answer that is there, or None at the end."""
        assert self._next is not None
        answer, self._next = self._next.result(), None
        return None if answer is None else AnswerDocument.of(answer)

    async def close(self) -> None:
        """Cancel the tasks without an answer."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
        await self.answers.aclose()


async def _asked(order: BroadcastRequest, client: Fleet) -> AsyncIterator[Asking]:
    answers = client.ask_all(
        order.capability, order.input, agents=order.agents, timeout=order.timeout, priority=order.priority
    )
    asking = Asking(cast("AsyncGenerator[Answer, None]", answers))
    try:
        yield asking
    finally:
        await asking.close()


Asked = Annotated[Asking, Depends(_asked)]


@broadcast_router.post("")
async def broadcast(asking: Asked, request: Request) -> BroadcastDocument:
    """Ask several agents for the same, and return all answers, at the latest after `timeout`.

    There is one answer for each agent; an agent that did not answer has an `error`, which says why. If the caller goes
    away, the tasks without an answer are canceled.
    """
    return await while_connected(request, _all(asking))


async def _all(asking: Asking) -> BroadcastDocument:
    answers = list[AnswerDocument]()
    while await asking.wait() and (answer := asking.take()) is not None:
        answers.append(answer)
    return BroadcastDocument(answers)


@broadcast_router.post(
    "/stream",
    response_class=EventsResponse,
    responses={200: {"description": "The answers.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream_broadcast(asking: Asked) -> EventsResponse:
    """Ask several agents for the same, and follow their answers as server-sent events, each as it comes.

    Events without a name are the answers, and `end` is the last event. If the reader goes away, the tasks without an
    answer are canceled.
    """
    await asking.wait(REFUSAL_SECONDS)  # a wrong request is refused as any other
    return EventsResponse(_events(asking))


async def _events(asking: Asking) -> AsyncIterator[bytes]:
    while True:
        if not await asking.wait(PING_SECONDS):
            yield b": ping\n\n"
        elif (answer := asking.take()) is None:
            break
        else:
            yield b"data: %b\n\n" % _AS_JSON.dump_json(answer)
    yield b"event: end\ndata: {}\n\n"


dead_letter_router = GuardedRouter(prefix="/dead", tags=["dead letters"])


@dataclass(frozen=True, slots=True)
class DeadDocument:
    """The dead letters that fit a listing, the workflow nodes that were given up, and what could not be read."""

    letters: list[LetterDocument]
    nodes: list[DeadNodeDocument]
    queues: tuple[DeadQueue, ...]
    notes: list[str]


class LetterSelection(ApiRequest):
    """The choice of dead letters: those that fit every given field, or `all`."""

    ids: list[str] = Field(default_factory=list, max_length=1_000)
    capability: str | None = None
    reason: str | None = None
    agent: str | None = None
    keyword: str | None = Field(default=None, description="A text in the error or the body.")
    all: bool = Field(default=False, description="Every dead letter; needed when nothing else is said.")
    dry_run: bool = Field(default=False, description="Only say what would be done.")

    def selection(self) -> Selection:
        """Return the criteria that choose dead letters; no criteria when `all` is chosen.

        Raises:
            InputError: when the request has neither criteria nor `all`, or both.
        """
        chosen = Selection(frozenset(self.ids), self.capability, self.reason, self.agent, self.keyword)
        if (chosen == Selection()) is not self.all:
            raise InputError(
                "Say which letters are meant", fix='ids, capability, reason, agent, keyword, or "all": true'
            )
        return chosen


class Redrive(LetterSelection):
    """The choice of dead letters to publish again as fresh tasks, and whether to keep deadlines that have passed."""

    keep_limits: bool = Field(default=False, description="Keep a deadline that has passed.")


@dead_letter_router.get("")
async def list_dead(
    services: Services,
    capability: str | None = None,
    reason: str | None = None,
    agent: str | None = None,
    keyword: str | None = None,
    limit: Limit = 100,
) -> DeadDocument:
    """List dead letters, oldest first in each queue, and after them workflow nodes that were given up."""
    letters: list[LetterDocument] = []
    notes: list[str] = []
    listing = await dead.list_dead(
        services.opened,
        Selection(capability=capability, reason=reason, agent_id=agent, keyword=keyword),
        most=limit,
        each=lambda letter: letters.append(LetterDocument.of(letter)),
        note=notes.append,
    )
    return DeadDocument(letters, [DeadNodeDocument.of(row) for row in listing.nodes], listing.queues, notes)


@dead_letter_router.get("/{letter_id}")
async def get_letter(letter_id: str, services: Services, capability: str | None = None) -> WholeLetter:
    """Show one dead letter: its reason, its failed attempts and its body."""
    letter = await dead.show_letter(services.opened, letter_id, capability=capability)
    return WholeLetter.of(letter)


@dead_letter_router.post("/redrive")
async def redrive_letters(order: Redrive, services: Services) -> SettledDocument:
    """Publish dead letters again as fresh tasks; one that cannot be stays in its queue. `dry_run` is a preview."""
    settled = await dead.redrive_letters(
        services.opened, order.selection(), dry_run=order.dry_run, keep_limits=order.keep_limits
    )
    return SettledDocument.of(settled)


@dead_letter_router.post("/discard")
async def discard_letters(order: LetterSelection, services: Services) -> SettledDocument:
    """Delete the chosen dead letters for good; with `dry_run` only tell which."""
    settled = await dead.discard_letters(services.opened, order.selection(), dry_run=order.dry_run)
    return SettledDocument.of(settled)


routers = (task_router, broadcast_router, dead_letter_router)
