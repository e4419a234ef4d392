"""The watch that finds consumers which the broker counts as alive but which receive nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import TypeVar

from coditect.broker.port import QueueStats
from coditect.broker.rabbitmq.consuming.consumer import Group, Subscription
from coditect.broker.rabbitmq.errors import LOST, canceled_by_us
from coditect.errors import CoditectError

log = logging.getLogger(__name__)

_UNCHECKED: tuple[type[BaseException], ...] = (*LOST, CoditectError)

ON_ITS_WAY_SECONDS = 0.2
FEW = 16
TURNS = 3
"""The number of rounds in which each of many consumers is checked once."""

T = TypeVar("T")

Stats = Callable[[str], Awaitable[QueueStats | None]]
EndRound = Callable[[], Awaitable[None]]


async def watch_consumers(groups: Mapping[str, Group], stats: Stats, end_round: EndRound, *, seconds: float) -> None:
    """Check the process's consumers in rounds, and restart each one that the broker does not have or does not serve.

    A consumer is deaf when the broker has none on its queue, or when messages are ready, the consumer has credit, and
    nothing came since the last round. Ready messages are counted twice, so that a message on its way is no proof.
    """
    seen: dict[Subscription, int] = {}
    for number in count():
        if canceled_by_us():
            return
        await asyncio.sleep(seconds)
        for group, subscription in due([(one, held) for one in groups.values() for held in one.subscriptions], number):
            before = seen.get(subscription)
            seen[subscription] = subscription.delivered
            quiet = before == subscription.delivered
            if subscription.active:  # else it is being restored already
                await _tried(_look(group, subscription, stats, quiet=quiet))
        await _tried(end_round())
        seen = {one: n for one, n in seen.items() if not one.canceled}


def due(consumers: Sequence[T], number: int) -> Sequence[T]:
    """Return the consumers to check in this round: all if there are at most 16, else a third in turn, to save work.

    To check all 40 queues of an idle dispatcher in every round would be a quarter of its work.
    """
    return consumers if len(consumers) <= FEW else consumers[number % TURNS :: TURNS]


async def _look(group: Group, subscription: Subscription, stats: Stats, *, quiet: bool) -> None:
    if await _is_deaf(subscription, stats, quiet=quiet):
        log.warning("A consumer was deaf; subscribing again", extra={"queue": subscription.queue})
        await group.renew(subscription)


async def _tried(step: Awaitable[None]) -> None:
    try:
        await step
    except asyncio.CancelledError:
        if canceled_by_us():
            raise
    except _UNCHECKED as error:
        log.debug("The consumers could not be checked", extra={"reason": repr(error)})


async def _is_deaf(subscription: Subscription, stats: Stats, *, quiet: bool) -> bool:
    tag, delivered = subscription.tag, subscription.delivered
    for pause in (ON_ITS_WAY_SECONDS, 0):
        found = await stats(subscription.queue)
        if found is None or subscription.canceled or subscription.tag != tag:
            return False
        starved = quiet and found.messages > 0 and subscription.unsettled < subscription.prefetch
        if not starved or subscription.delivered != delivered:
            return found.consumers == 0
        await asyncio.sleep(pause)
    return True
