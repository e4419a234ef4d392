"""Threads and handoffs under `/api/v1/collaboration`, in the words of platforms whose agents have ids and tickets.

The resources are those of `/v1/threads` and `/v1/handoffs`. A message's id is its thread's id, a dot and its number; a
handoff also has a thread in which it was requested, so its id may be that of the thread or of the message.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal, Self

from fastapi import Path, Query
from pydantic import BaseModel, Field

from coditect.api.access import Caller
from coditect.api.problems import RequestRefused
from coditect.api.routes.parameters import (
    ApiRequest,
    ChangeReason,
    IdempotencyKey,
    Limit,
    Span,
    Who,
    acting_name,
    may_act,
    own_key,
)
from coditect.api.services import ApiServices, Fleet, GuardedRouter, Services
from coditect.collaboration.handoffs import HandoffRow, HandoffState
from coditect.collaboration.threads import ThreadOptions
from coditect.errors import NotFound
from coditect.model.thread import ThreadMessage, ThreadRow
from coditect.operations.coordination import handoffs, threads

PREFIX = "/api/v1/collaboration"
router = GuardedRouter(prefix=PREFIX, tags=["collaboration"])

AgentName = Annotated[str, Field(min_length=1, max_length=200)]
Id = Annotated[str, Path(max_length=2_000)]
Status = Literal["open", "closed"]


class ThreadOrder(ApiRequest):
    """A thread to open between agents."""

    thread_type: str = Field(default="discussion", max_length=200)
    participants: list[AgentName] = Field(min_length=1, max_length=50)
    ticket_id: str | None = Field(default=None, max_length=1_000)
    task_id: str | None = Field(default=None, max_length=1_000)
    metadata: dict[str, Any] = Field(default={})


class MessageOrder(ApiRequest):
    """A message to add to a thread; without `to_agent_id` it is for all participants."""

    thread_id: str = Field(max_length=200)
    from_agent_id: AgentName
    to_agent_id: AgentName | None = None
    message_type: str = Field(default="text", max_length=200)
    content: Any
    message_metadata: dict[str, Any] = Field(default={})


class ReadOrder(ApiRequest):
    """The participant that has read a message; by default its only receiver, else the caller."""

    agent_id: AgentName | None = None


class HandoffOrder(ApiRequest):
    """A running task that its agent offers to another agent, or to the agents of a capability."""

    from_agent_id: AgentName
    to_agent_id: AgentName
    task_id: str = Field(min_length=1, max_length=1_000)
    reason: str = Field(default="", max_length=1_000)
    context: Any = None
    timeout: Span = Field(default="1m", description="How long the offer stands; up to 24h.")


class AnswerOrder(ApiRequest):
    """The agent that answers an offer, by default the one that is asked, and why."""

    agent_id: AgentName | None = None
    reason: str = Field(default="", max_length=500)


class CollaborationThread(BaseModel):
    """A thread of agents."""

    thread_id: str
    thread_type: str
    participants: list[str]
    ticket_id: str | None
    task_id: str | None
    metadata: dict[str, Any]
    status: Status
    message_count: int
    created_at_ms: int
    updated_at_ms: int

    @classmethod
    def of(cls, row: ThreadRow) -> Self:
        """Return a thread in the words of this API."""
        return cls(
            thread_id=row.thread,
            thread_type=row.type,
            participants=row.participants,
            ticket_id=row.ticket or None,
            task_id=row.task or None,
            metadata=row.metadata,
            status="closed" if row.closed_ms else "open",
            message_count=row.last,
            created_at_ms=row.begun_ms,
            updated_at_ms=row.last_ms,
        )


class CollaborationMessage(BaseModel):
    """A message of a thread, and who of its receivers has read it."""

    message_id: str
    thread_id: str
    number: int
    from_agent_id: str
    to_agent_id: str | None = Field(description="The only receiver; null for all participants, or for several.")
    message_type: str
    content: Any
    message_metadata: dict[str, Any]
    read_by: list[str]
    created_at_ms: int

    @classmethod
    def of(cls, row: ThreadMessage, thread: ThreadRow) -> Self:
        """Return a message of a thread in the words of this API."""
        receivers = [one for one in row.to or thread.participants if one != row.sender]
        return cls(
            message_id=f"{thread.thread}.{row.number}",
            thread_id=thread.thread,
            number=row.number,
            from_agent_id=row.sender,
            to_agent_id=row.to[0] if len(row.to) == 1 else None,
            message_type=row.type,
            content=row.value,
            message_metadata=row.metadata,
            read_by=[one for one in receivers if thread.read.get(one, 0) >= row.number],
            created_at_ms=row.at_ms,
        )


class CollaborationHandoff(BaseModel):
    """A handoff of a running task, as it is now."""

    handoff_id: str
    task_id: str
    status: HandoffState
    from_agent_id: str
    to_agent_id: str
    accepted_by: str | None
    reason: str
    declined: dict[str, str] = Field(description="The reasons of the agents that declined, by agent.")

    @classmethod
    def of(cls, row: HandoffRow) -> Self:
        """Return a handoff in the words of this API."""
        return cls(
            handoff_id=row.handoff,
            task_id=row.task,
            status=row.state,
            from_agent_id=row.owner,
            to_agent_id=row.to,
            accepted_by=row.by if row.state is HandoffState.ACCEPTED else None,
            reason=row.reason,
            declined=dict(row.reasons),
        )


class RequestedHandoff(BaseModel):
    """A handoff that was just requested, and the thread and the message in which it was."""

    handoff_id: str
    thread_id: str
    message_id: str
    status: HandoffState = Field(description="`declined` if there is no other living agent to ask.")


@router.post("/threads", status_code=HTTPStatus.CREATED)
async def create_collaboration_thread(
    order: ThreadOrder, services: Services, client: Fleet, who: Who
) -> CollaborationThread:
    """Open a thread between agents, about a task or a ticket of another system.

    Without the role admin, the caller or an agent of its name must be among the participants.
    """
    by = await _opener(services, who, order.participants)
    bound: ThreadOptions = {"type": order.thread_type, "metadata": order.metadata}
    bound |= {"task": order.task_id or "", "ticket": order.ticket_id or ""}
    thread = await client.threads.open(*order.participants, by=by, **bound)
    return CollaborationThread.of(await thread.show())


async def _opener(services: ApiServices, who: Caller, participants: list[str]) -> str:
    """Return the first participant in whose name a caller may act; it opens the thread.

    Raises:
        RequestRefused: 403, when there is none.
    """
    for one in participants:
        if await may_act(services, who, one):
            return one
    fix = f"name {who.name} or an agent of this name among the participants, or use a key with the role admin"
    raise RequestRefused(HTTPStatus.FORBIDDEN, f"The key {who.name} may not open a thread of others", fix=fix)


@router.get("/threads")
async def list_collaboration_threads(
    client: Fleet,
    agent: str | None = None,
    ticket: str | None = None,
    status: Status | None = None,
    limit: Limit = 100,
) -> list[CollaborationThread]:
    """List threads, the earliest first: all, or those of an agent, of a ticket, or with a status."""
    rows = list[CollaborationThread]()
    async for row in client.threads.list(participant=agent, ticket=ticket, open_only=status == "open"):
        if row.closed_ms or status != "closed":
            rows.append(CollaborationThread.of(row))
        if len(rows) >= limit:
            break
    return rows


@router.post("/threads/{thread_id}/close")
async def close_collaboration_thread(
    thread_id: Id, client: Fleet, order: ChangeReason | None = None
) -> CollaborationThread:
    """Close a thread, so that it takes no more messages."""
    thread = client.threads.get(thread_id)
    await thread.close((order or ChangeReason()).reason)
    return CollaborationThread.of(await thread.show())


@router.get("/threads/{thread_id}/messages")
async def list_collaboration_messages(
    thread_id: Id, services: Services, after: Annotated[int, Query(ge=0)] = 0, limit: Limit = 100
) -> list[CollaborationMessage]:
    """List a thread's messages in order, those with numbers above `after`, each with who has read it."""
    found = await threads.get_thread(services.opened, thread_id, after=after, limit=limit)
    return [CollaborationMessage.of(one, found.thread) for one in found.messages]


@router.post("/messages", status_code=HTTPStatus.CREATED)
async def send_collaboration_message(
    order: MessageOrder, services: Services, client: Fleet, who: Who
) -> CollaborationMessage:
    """Add a message to a thread, for one participant or for all."""
    thread = client.threads.get(order.thread_id, by=await acting_name(services, who, order.from_agent_id))
    number = await thread.say(
        order.content, type=order.message_type, to=order.to_agent_id or (), metadata=order.message_metadata
    )
    return await _message(services, thread.id, number)


@router.post("/messages/{message_id}/read")
async def read_collaboration_message(
    message_id: Id, services: Services, client: Fleet, who: Who, order: ReadOrder | None = None
) -> CollaborationMessage:
    """Note that a participant has read a message, and with it all messages before it."""
    thread, number = _place(message_id)
    message = await _message(services, thread, number)
    reader = await acting_name(services, who, (order or ReadOrder()).agent_id, default=message.to_agent_id)
    await client.threads.get(thread, by=reader).read(number)
    return await _message(services, thread, number)


@router.post("/handoff/request", status_code=HTTPStatus.CREATED)
async def request_collaboration_handoff(
    order: HandoffOrder, services: Services, who: Who, key: IdempotencyKey = None
) -> RequestedHandoff:
    """Offer a running task to other agents, and say so in a new thread with the agent that is asked.

    A repeat with the same `Idempotency-Key` continues a request that was interrupted.
    """
    owner = await acting_name(services, who, order.from_agent_id)
    offer = order.model_dump(include={"reason", "context", "timeout"})
    made = await handoffs.request_in_thread(
        services.opened, order.task_id, owner=owner, to=order.to_agent_id, key=own_key(who, key), **offer
    )
    row, thread = made.handoff, made.thread
    return RequestedHandoff(
        handoff_id=row.handoff, thread_id=thread, message_id=f"{thread}.{made.number}", status=row.state
    )


@router.post("/handoff/{handoff_id}/accept")
async def accept_collaboration_handoff(
    handoff_id: Id, services: Services, who: Who, order: AnswerOrder | None = None
) -> CollaborationHandoff:
    """Take an offered task over; `accepted_by` of the answer has the task."""
    return await _answer(services, who, handoff_id, order or AnswerOrder(), accept=True)


@router.post("/handoff/{handoff_id}/decline")
async def decline_collaboration_handoff(
    handoff_id: Id, services: Services, who: Who, order: AnswerOrder | None = None
) -> CollaborationHandoff:
    """Decline an offered task; without another agent to ask, it stays with its owner."""
    return await _answer(services, who, handoff_id, order or AnswerOrder(), accept=False)


async def _answer(
    services: ApiServices, who: Who, handoff_id: str, order: AnswerOrder, *, accept: bool
) -> CollaborationHandoff:
    handoff, opened = handoff_id, services.opened
    if ":" not in handoff_id:  # the id of the thread, or of a message in it
        handoff = await handoffs.handoff_in(opened, handoff_id.partition(".")[0])
    async with opened.fleet() as client:
        asked = (await client.handoffs.get(handoff)).asked
    agent = await acting_name(services, who, order.agent_id, default=asked[-1].agent if asked else None)
    answered = handoffs.answer_handoff(opened, handoff, agent=agent, accept=accept, reason=order.reason)
    return CollaborationHandoff.of(await answered)


async def _message(services: ApiServices, thread: str, number: int) -> CollaborationMessage:
    found = await threads.get_thread(services.opened, thread, after=number - 1, limit=1)
    for message in found.messages:
        return CollaborationMessage.of(message, found.thread)
    raise _unknown(f"{thread}.{number}")


def _place(message_id: str) -> tuple[str, int]:
    thread, _, number = message_id.rpartition(".")
    if not (thread and number.isascii() and number.isdigit() and int(number[:9]) > 0):
        raise _unknown(message_id)
    return thread, int(number[:9])


def _unknown(message_id: str) -> NotFound:
    fix = "GET /api/v1/collaboration/threads/{thread_id}/messages lists the ids"
    return NotFound("There is no such message, or it is not kept any more", message=message_id[:300], fix=fix)
