"""The HTTP routes of conversations of agents and people (threads): list, show, open and close them, add a message."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from coditect.api.access.roles import LOCAL, Caller, Role
from coditect.api.routes.parameters import ApiRequest, ChangeReason, Limit, Who
from coditect.api.services import Services, needs
from coditect.collaboration.threads import ThreadRow
from coditect.operations.coordination import threads
from coditect.operations.coordination.threads import SaidMessage, ShownThread

router = APIRouter(prefix="/threads", tags=["threads"])
steered = APIRouter(prefix="/threads", tags=["threads"], dependencies=[needs(Role.OPERATOR)])


class NewThread(ApiRequest):
    """A conversation to open (a thread): its participants, type, title, and the task or workflow that it is about."""

    participants: list[str] = Field(max_length=50, description="Agents, capabilities and people, by name.")
    type: str = Field(default="discussion", max_length=200)
    title: str = Field(default="", max_length=1_000)
    task: str = Field(default="", max_length=1_000)
    workflow: str = Field(default="", max_length=1_000)
    by: str = Field(default="", max_length=200, description="Who opens it; only without API keys, else the key's name.")


class NewMessage(ApiRequest):
    """A message to add to a conversation (a thread): a JSON value, its type, and to whom; by default to all."""

    value: Any
    type: str = Field(default="text", max_length=200)
    to: list[str] = Field(default=[], max_length=50, description="Only to these participants; default: all.")
    answers: int | None = Field(default=None, ge=1, description="The number of the message that this one answers.")
    by: str = Field(default="", max_length=200, description="Who says it; only without API keys, else the key's name.")


@router.get("")
async def list_threads(
    services: Services,
    participant: str | None = None,
    task: str | None = None,
    workflow: str | None = None,
    open_only: Annotated[bool, Query(alias="open")] = False,
    limit: Limit = 100,
) -> list[ThreadRow]:
    """List conversations (threads), the earliest first: all, or those of a participant, a task or a workflow."""
    wanted = {"participant": participant, "task": task, "workflow": workflow}
    return await threads.list_threads(services.opened, **wanted, open_only=open_only, most=limit)


@router.get("/{thread}")
async def show_thread(
    thread: str, services: Services, after: Annotated[int, Query(ge=0)] = 0, limit: Limit = 100
) -> ShownThread:
    """Show a conversation (a thread) with at most `limit` of its messages, those with numbers above `after`."""
    return await threads.show_thread(services.opened, thread, after=after, most=limit)


@steered.post("", status_code=HTTPStatus.CREATED)
async def open_thread(order: NewThread, services: Services, who: Who) -> ThreadRow:
    """Open a conversation (a thread) between the caller and the named participants, and return it."""
    by, bound = _by(order.by, who), {"task": order.task, "workflow": order.workflow}
    return await threads.open_thread(
        services.opened, order.participants, by=by, type_=order.type, title=order.title, **bound
    )


@steered.post("/{thread}/messages", status_code=HTTPStatus.CREATED)
async def say_in_thread(thread: str, order: NewMessage, services: Services, who: Who) -> SaidMessage:
    """Add a message of the caller to a conversation (a thread); return the message's number in it."""
    by = _by(order.by, who)
    return await threads.say(
        services.opened, thread, order.value, by=by, type_=order.type, to=order.to, answers=order.answers
    )


@steered.post("/{thread}/close")
async def close_thread(thread: str, order: ChangeReason, services: Services) -> ThreadRow:
    """Close a thread, so that it takes no more messages."""
    return await threads.close_thread(services.opened, thread, reason=order.reason)


def _by(named: str, who: Caller) -> str:
    return named or who.name if who is LOCAL else who.name
