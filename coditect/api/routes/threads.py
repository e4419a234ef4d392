"""The routes of threads: list and show them, open one, say something in it, and close it."""

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
    """A thread to open."""

    participants: list[str] = Field(max_length=50, description="Agents, capabilities and people, by name.")
    type: str = Field(default="discussion", max_length=200)
    title: str = Field(default="", max_length=1_000)
    task: str = Field(default="", max_length=1_000)
    workflow: str = Field(default="", max_length=1_000)
    by: str = Field(default="", max_length=200, description="Who opens it; only without API keys, else the key's name.")


class NewMessage(ApiRequest):
    """A message to say in a thread."""

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
    """List threads, the earliest first: all, or those of a participant, a task or a workflow."""
    wanted = {"participant": participant, "task": task, "workflow": workflow}
    return await threads.list_threads(services.opened, **wanted, open_only=open_only, most=limit)


@router.get("/{thread}")
async def show_thread(
    thread: str, services: Services, after: Annotated[int, Query(ge=0)] = 0, limit: Limit = 100
) -> ShownThread:
    """Show a thread with its messages, from the one behind number `after` on."""
    return await threads.show_thread(services.opened, thread, after=after, most=limit)


@steered.post("", status_code=HTTPStatus.CREATED)
async def open_thread(order: NewThread, services: Services, who: Who) -> ThreadRow:
    """Open a thread for the caller and for others."""
    by, bound = _by(order.by, who), {"task": order.task, "workflow": order.workflow}
    return await threads.open_thread(
        services.opened, order.participants, by=by, type_=order.type, title=order.title, **bound
    )


@steered.post("/{thread}/messages", status_code=HTTPStatus.CREATED)
async def say_in_thread(thread: str, order: NewMessage, services: Services, who: Who) -> SaidMessage:
    """Say something in a thread, as one of its participants."""
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
