"""The search for a deadlock in the wait-for graph of locks, made when a request for locks (a ticket) begins to wait.

A flow of execution waits for every flow that has a place before its ticket's own and bars it. Only a ticket that begins
to wait adds edges that leave its flow, so a cycle is always closed by the youngest waiter, which is the victim.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from dispatcher.coordination import lock_rows as rows
from dispatcher.coordination.lock_rows import Place, Ticket
from dispatcher.store.transaction import Transaction

Flow: TypeAlias = tuple[str, str]
"""A flow of execution, such as one asyncio task: the name of its agent, and its own name."""
MOST_FLOWS = 1_000
"""The number of flows after which the search ends; a longer cycle is left to the time limits of its waits."""


def cycle(tr: Transaction, ticket: Ticket) -> list[dict[str, str]]:
    """Return the deadlock that a waiting request for locks would cause: who waits for what; empty if none is found.

    Each entry is a flow of execution and its resource. The first flow is the ticket's own; each waits for the next, and
    the last one for the first. The search ends after `MOST_FLOWS`.
    """
    me = (ticket.agent, ticket.owner)
    if not rows.tickets_of(tr, *me, limit=1):  # nobody can wait for a flow that has no place
        return []
    came: dict[Flow, tuple[Flow, str]] = {}
    ahead: deque[tuple[Flow, list[Ticket]]] = deque([(me, [ticket])])
    while ahead and len(came) < MOST_FLOWS:
        flow, waiting = ahead.popleft()
        for place, resource in _waits(tr, waiting):
            if place.flow == me:
                return _told(came, me, flow, resource)
            if place.flow not in came:
                came[place.flow] = (flow, resource)
                ahead.append((place.flow, _waiting(tr, place.flow)))
    return []


def _waits(tr: Transaction, waiting: list[Ticket]) -> Iterator[tuple[Place, str]]:
    for ticket in waiting:
        for resource in ticket.resources:
            for place in rows.places(tr, resource, before=ticket.number):
                if place.bars(ticket.mode):
                    yield place, resource


def _waiting(tr: Transaction, flow: Flow) -> list[Ticket]:
    found = (rows.read(tr, ticket) for ticket in rows.tickets_of(tr, *flow))
    return [ticket for ticket in found if ticket is not None and not ticket.fence]


def _told(came: dict[Flow, tuple[Flow, str]], me: Flow, last: Flow, resource: str) -> list[dict[str, str]]:
    told = [_link(last, resource)]
    while last != me:
        last, resource = came[last]
        told.append(_link(last, resource))
    return told[::-1]


def _link(flow: Flow, resource: str) -> dict[str, str]:
    return {"agent": flow[0], "owner": flow[1], "waits_for": resource}
