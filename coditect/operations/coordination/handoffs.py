"""Use cases for handoffs of running tasks between agents: request and answer one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

from coditect.collaboration.handoffs import HandoffRow, HandoffState, agents_to_ask
from coditect.errors import Conflict, InputError, NotFound
from coditect.model.ids import name_in
from coditect.operations.connections import Connections
from coditect.operations.coordination.threads import get_thread

HANDOFF_THREAD = "handoff"
"""The type of a thread in which a handoff is requested."""
HANDOFF_MESSAGE = "handoff_request"
FEW_MESSAGES = 10
"""The number of messages among which that of the request is: others may have spoken before it."""
_REQUESTS = uuid5(NAMESPACE_OID, "coditect.handoff request")


@dataclass(frozen=True, slots=True)
class RequestedHandoff:
    """A handoff that was requested in a thread, and the number of the message that says so."""

    handoff: HandoffRow
    thread: str
    number: int


async def request_handoff(
    opened: Connections,
    task: str,
    *,
    owner: str,
    to: str,
    reason: str = "",
    context: Any = None,
    timeout: str = "1m",
) -> HandoffRow:
    """Offer a running task, in the name of the agent that runs it, to the agents that `to` names; do not wait.

    Raises:
        InputError: when the control plane does not keep the task, or `owner` does not run it.
        RegistryUnavailable: when the agents to ask cannot be found; retryable.
    """
    async with opened.registry() as registry, opened.fleet() as client:
        asked = await agents_to_ask(registry, to, owner=owner)
        offer = {"reason": reason, "context": context, "timeout": timeout}
        return await client.handoffs.request(task, owner=owner, to=to, asked=asked, **offer)


async def request_in_thread(
    opened: Connections, task: str, *, owner: str, to: str, key: str | None, **offer: Any
) -> RequestedHandoff:
    """Offer a running task as `request_handoff` does, and say so in a new thread of the owner and the asked agent.

    A repeat with the same `key` continues where the first request ended, and offers nothing again. If the offer is
    refused, its thread is closed.

    Raises:
        Conflict: when a request with this key was refused before.
        CoditectError: the errors of `request_handoff`.
    """
    base = uuid4() if key is None else uuid5(_REQUESTS, key)

    def new_id(what: str) -> str:
        return str(uuid5(base, what))

    async with opened.registry() as registry, opened.fleet() as client:
        offer |= {"asked": await agents_to_ask(registry, to, owner=owner), "ticket": new_id("handoff")}
        thread = client.threads.get(new_id("thread"), by=owner, new_id=new_id)
        await thread.open([owner, to], type=HANDOFF_THREAD, task=task)
        if (await thread.show()).closed_ms:
            raise Conflict("The handoff with this key was refused before", task=task, fix="use another key")
        try:
            row = await client.handoffs.request(task, owner=owner, to=to, **offer)
        except InputError as error:
            await thread.close(reason=str(error)[:500])
            raise
        content = {"handoff_id": row.handoff, "task_id": task, "reason": row.reason, "context": offer.get("context")}
        number = await thread.say(content, type=HANDOFF_MESSAGE, to=[to])
        return RequestedHandoff(row, thread.id, number)


async def handoff_in(opened: Connections, thread: str) -> str:
    """Return the id of the handoff that was requested in a thread.

    Raises:
        NotFound: when there is none, or the thread is unknown.
    """
    found = await get_thread(opened, thread, limit=FEW_MESSAGES)
    for message in found.messages:
        if message.type == HANDOFF_MESSAGE and message.sender == found.thread.participants[0]:
            return str(message.value["handoff_id"])
    fix = "use the thread_id, message_id or handoff_id of POST /handoff/request"
    raise NotFound("No handoff was requested in this thread", thread=found.thread.thread, fix=fix)


async def answer_handoff(
    opened: Connections, handoff: str, *, agent: str, accept: bool, reason: str = ""
) -> HandoffRow:
    """Accept or decline an offered task in the name of an agent that was asked; return the handoff's present state.

    Raises:
        NotFound: when it is unknown, or its workflow is not kept any more.
        InputError: when the agent was not asked.
        Conflict: when the agent accepts too late, and does not get the task.
    """
    async with opened.fleet() as client:
        if accept:
            row = await client.handoffs.accept(handoff, agent=agent)
            if row.state is not HandoffState.ACCEPTED or agent not in (row.by, name_in(row.by)):
                facts = {"handoff": handoff, "status": row.state.value, "by": row.by}
                raise Conflict("The handoff has ended without this agent", **facts, fix="leave the task as it is")
            return row
        return await client.handoffs.decline(handoff, agent=agent, reason=reason)
