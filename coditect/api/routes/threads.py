"""The routes of what agents and people say to each other and pass on: threads, handoffs, and lessons of failures."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Required

from fastapi import Body, Query
from pydantic import ConfigDict, Field, with_config

from coditect.api.routes.parameters import BY, ApiRequest, ChangeReason, Limit, Span, Who, acting_name
from coditect.api.services import Fleet, GuardedRouter, Services
from coditect.collaboration.handoffs import HandoffRow
from coditect.collaboration.threads import ThreadOptions
from coditect.model.lesson import Lesson
from coditect.model.thread import ThreadRow
from coditect.operations.coordination import handoffs, threads
from coditect.operations.coordination.threads import ShownThread

thread_router = GuardedRouter(prefix="/threads", tags=["threads"])


@with_config(ConfigDict(extra="forbid"))
class NewThread(ThreadOptions, total=False):
    """A conversation to open (a thread): its participants, type, title, and the task or workflow that it is about."""

    participants: Required[
        Annotated[list[str], Field(max_length=50, description="Agents, capabilities and people, by name.")]
    ]
    by: Annotated[str, Field(max_length=200, description=f"Who opens it. {BY}")]


class NewMessage(ApiRequest):
    """A message to add to a conversation (a thread): a JSON value, its type, and to whom; by default to all."""

    value: Any
    type: str = Field(default="text", max_length=200)
    to: list[str] = Field(default=[], max_length=50, description="Only to these participants; default: all.")
    metadata: dict[str, Any] = Field(default={})
    answers: int | None = Field(default=None, ge=1, description="The number of the message that this one answers.")
    by: str = Field(default="", max_length=200, description=f"Who says it. {BY}")


@dataclass(frozen=True, slots=True)
class SaidMessage:
    """The place of a message that was just said: its thread, and its number in the thread."""

    thread: str
    number: int
    """The number of the message in its thread."""


class ReadUpTo(ApiRequest):
    """A read receipt: the number of the last message of a conversation (a thread) that a participant has read."""

    number: int = Field(ge=1)
    by: str = Field(default="", max_length=200, description=f"Who read it. {BY}")


@thread_router.get("")
async def list_threads(
    client: Fleet,
    participant: str | None = None,
    task: str | None = None,
    workflow: str | None = None,
    ticket: str | None = None,
    open_only: Annotated[bool, Query(alias="open")] = False,
    limit: Limit = 100,
) -> list[ThreadRow]:
    """List conversations (threads), the earliest first: all, or of a participant, a task, a workflow or a ticket."""
    conditions = {"participant": participant, "task": task, "workflow": workflow, "ticket": ticket}
    return [row async for row in client.threads.list(**conditions, open_only=open_only, limit=limit)]


@thread_router.get("/{thread}")
async def get_thread(
    thread: str, services: Services, after: Annotated[int, Query(ge=0)] = 0, limit: Limit = 100
) -> ShownThread:
    """Get a conversation (a thread) with at most `limit` of its messages, those with numbers above `after`."""
    return await threads.get_thread(services.opened, thread, after=after, limit=limit)


@thread_router.post("", status_code=HTTPStatus.CREATED)
async def open_thread(order: Annotated[NewThread, Body()], services: Services, client: Fleet, who: Who) -> ThreadRow:
    """Open a conversation (a thread) between the caller and the named participants, and return it."""
    options: dict[str, Any] = {**order}
    participants, by = options.pop("participants"), await acting_name(services, who, options.pop("by", ""))
    return await (await client.threads.open(*participants, by=by, **options)).show()


@thread_router.post("/{thread}/messages", status_code=HTTPStatus.CREATED)
async def say_in_thread(thread: str, order: NewMessage, services: Services, client: Fleet, who: Who) -> SaidMessage:
    """Add a message of the caller to a conversation (a thread); return the message's number in it.

    An answer goes to the sender of the message that it answers alone; `type`, `to` and `metadata` do not count then.
    """
    found = client.threads.get(thread, by=await acting_name(services, who, order.by))
    if order.answers is not None:
        return SaidMessage(thread, await found.answer(await found.message(order.answers), order.value))
    said = await found.say(order.value, **order.model_dump(include={"type", "to", "metadata"}))
    return SaidMessage(thread, said)


@thread_router.post("/{thread}/read")
async def read_thread(thread: str, receipt: ReadUpTo, services: Services, client: Fleet, who: Who) -> ThreadRow:
    """Note that the caller has read a conversation (a thread) up to a message; return it with all read receipts."""
    found = client.threads.get(thread, by=await acting_name(services, who, receipt.by))
    await found.read(receipt.number)
    return await found.show()


@thread_router.post("/{thread}/close")
async def close_thread(thread: str, order: ChangeReason, client: Fleet) -> ThreadRow:
    """Close a thread, so that it takes no more messages."""
    found = client.threads.get(thread)
    await found.close(order.reason)
    return await found.show()


handoff_router = GuardedRouter(prefix="/handoffs", tags=["handoffs"])


class NewHandoff(ApiRequest):
    """A running task to offer to other agents, in the name of the agent that runs it."""

    task: str = Field(min_length=1, max_length=1_000)
    owner: str = Field(min_length=1, max_length=200, description="The id of the agent that runs the task.")
    to: str = Field(min_length=1, max_length=200, description="An agent's id or name, or a capability.")
    reason: str = Field(default="", max_length=1_000)
    context: Any = None
    timeout: Span = Field(default="1m", description="How long the offer stands; up to 24h.")


class HandoffAnswer(ApiRequest):
    """The agent that accepts or declines an offered task, and why."""

    agent: str = Field(default="", max_length=200, description="The agent's id or name; default: the caller.")
    reason: str = Field(default="", max_length=500)


@handoff_router.get("")
async def list_handoffs(
    client: Fleet,
    task: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    open_only: Annotated[bool, Query(alias="open")] = False,
    limit: Limit = 100,
) -> list[HandoffRow]:
    """List handoffs without contexts: all, or of a task, workflow or agent; those of the earliest workflow first."""
    conditions = {"task": task, "workflow": workflow, "agent": agent}
    return [row async for row in client.handoffs.list(**conditions, open_only=open_only, limit=limit)]


@handoff_router.get("/{handoff}")
async def get_handoff(handoff: str, client: Fleet) -> HandoffRow:
    """Get a handoff: its context, who was asked, and why each declined."""
    return await client.handoffs.get(handoff)


@handoff_router.post("", status_code=HTTPStatus.CREATED)
async def request_handoff(order: NewHandoff, services: Services, who: Who) -> HandoffRow:
    """Offer a running task to other agents, one after the other; return the open handoff."""
    await acting_name(services, who, order.owner)
    return await handoffs.request_handoff(services.opened, **order.model_dump())


@handoff_router.post("/{handoff}/accept")
async def accept_handoff(handoff: str, answer: HandoffAnswer, services: Services, who: Who) -> HandoffRow:
    """Take an offered task over, as an agent that was asked; `by` of the answer has the task."""
    agent = await acting_name(services, who, answer.agent)
    return await handoffs.answer_handoff(services.opened, handoff, agent=agent, accept=True)


@handoff_router.post("/{handoff}/decline")
async def decline_handoff(handoff: str, answer: HandoffAnswer, services: Services, who: Who) -> HandoffRow:
    """Decline an offered task, as an agent that was asked."""
    agent, reason = await acting_name(services, who, answer.agent), answer.reason
    return await handoffs.answer_handoff(services.opened, handoff, agent=agent, accept=False, reason=reason)


@handoff_router.post("/{handoff}/withdraw")
async def withdraw_handoff(handoff: str, order: ChangeReason, client: Fleet, who: Who) -> HandoffRow:
    """End an open handoff, so that the task stays with the agent that has it."""
    return await client.handoffs.withdraw(handoff, by=who.name, reason=order.reason)


lesson_router = GuardedRouter(prefix="/lessons", tags=["lessons"])


@lesson_router.get("")
async def list_lessons(client: Fleet, capability: str | None = None, limit: Limit = 100) -> list[Lesson]:
    """List what failed at a capability, or at any, why, and what fixed it; the weightiest of each come first."""
    return await client.lessons.list(capability, limit=limit)


@lesson_router.delete("/{capability}", status_code=HTTPStatus.NO_CONTENT)
async def forget_lessons(capability: str, client: Fleet, lesson: str | None = None) -> None:
    """Forget one lesson of a capability by its id, or all; a failure that comes again is learned again."""
    await client.lessons.forget(capability, lesson)


routers = (thread_router, handoff_router, lesson_router)
