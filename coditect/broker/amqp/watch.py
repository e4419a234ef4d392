"""Proof that our consumers really exist: the field's commonest outage is a worker that is alive and deaf."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from coditect.broker.amqp.faults import LOST, canceled_by_us
from coditect.broker.amqp.inlet import Group, Subscription
from coditect.broker.port import QueueStats
from coditect.errors import CoditectError

log = logging.getLogger(__name__)

_UNCHECKED: tuple[type[BaseException], ...] = (*LOST, CoditectError)

Stats = Callable[[str], Awaitable[QueueStats | None]]


async def watch_consumers(groups: Mapping[str, Group], stats: Stats, *, seconds: float) -> None:
    """Every so often compares what the broker says with what we hold, and subscribes again when it differs.

    A consumer is deaf when the broker knows none on its queue, or when messages are ready, it has credit,
    and nothing came since the last look.
    """
    seen: dict[Subscription, int] = {}
    while True:
        await asyncio.sleep(seconds)
        for group in tuple(groups.values()):
            for subscription in tuple(group.subscriptions):
                before = seen.get(subscription)
                seen[subscription] = subscription.delivered
                await _look(group, subscription, stats, quiet=before == subscription.delivered)
        seen = {one: n for one, n in seen.items() if not one.canceled}


async def _look(group: Group, subscription: Subscription, stats: Stats, *, quiet: bool) -> None:
    if not subscription.active:
        return  # it is being restored already
    try:
        found = await stats(subscription.queue)
        if found is None or not subscription.active or subscription.canceled:
            return
        starved = quiet and found.messages > 0 and subscription.unsettled < subscription.prefetch
        if found.consumers == 0 or starved:
            log.warning("A consumer was deaf; subscribing again", extra={"queue": subscription.queue})
            await group.renew(subscription)
    except asyncio.CancelledError:
        if canceled_by_us():
            raise
    except _UNCHECKED as error:
        log.debug("The consumers could not be checked", extra={"reason": repr(error)})
