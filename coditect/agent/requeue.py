"""The return of unsettled deliveries to their queues: after pauses that double, and at last as dead letters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from coditect.aio.backoff import Backoff
from coditect.broker.port import Delivery
from coditect.errors import InputError, NotFound, Retryable, Unroutable

log = logging.getLogger(__name__)

RETURNS = Backoff(1.0, 60.0)
"""The pauses before a delivery that could not be settled goes back."""
MOST_RETURNS = 8
"""Number of returns after which a delivery that still cannot be settled becomes a dead letter."""


class InHand(Protocol):
    """The deliveries that wait for the outcome of one execution, usually a single one."""

    def requeue(self) -> None:
        """Return the deliveries to their queues, for any agent."""

    def reject(self) -> None:
        """Reject the deliveries, so that the broker makes dead letters of them."""


async def guarded(work: Coroutine[Any, Any, None], delivery: Delivery, in_hand: InHand | None = None) -> None:
    """Await a coroutine that settles a delivery; if that fails, return the delivery or make it a dead letter."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - told in full
        await not_settled(error, delivery, in_hand)
    except BaseException:
        (in_hand or delivery).requeue()
        raise


async def not_settled(error: Exception, delivery: Delivery, in_hand: InHand | None = None) -> None:
    """Settle a delivery after an error: return it, mostly after a growing pause, or make a dead letter of it.

    The pause doubles with each return; the first return after trouble of the broker has none.
    Trouble of the broker as a whole makes no dead letters; an error of the message itself makes one at once.
    """
    in_hand, returns = in_hand or delivery, delivery.delivery_count
    facts = {"task_id": delivery.message.message_id, "reason": str(error), "returns": returns}
    wrong_itself = isinstance(error, InputError) and not isinstance(error, NotFound | Unroutable)
    if isinstance(error, Retryable):
        log.warning("A task could not be settled; it is returned", extra=facts)
    elif wrong_itself:
        log.warning("A task cannot be settled; it becomes a dead letter", extra=facts)
        in_hand.reject()
        return
    elif returns >= MOST_RETURNS:
        log.error("A task cannot be settled; it becomes a dead letter", exc_info=error, extra=facts)
        in_hand.reject()
        return
    else:
        log.error("The runtime failed on a delivery; it is returned", exc_info=error, extra=facts)
    try:
        if returns or not isinstance(error, Retryable):
            await asyncio.sleep(pause_seconds(delivery))
    finally:
        in_hand.requeue()


def pause_seconds(delivery: Delivery) -> float:
    """Return the pause before a delivery goes back: doubled each time, up to a minute; 0 s if the delivery is lost."""
    return 0.0 if delivery.lost else RETURNS.pause(delivery.delivery_count + 1)
