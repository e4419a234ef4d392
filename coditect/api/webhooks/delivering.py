"""The delivery of events to webhooks: each is tried until taken or given up; a webhook that takes none is disabled.

An event is acknowledged at the broker after its receiver took it, so it outlives an API process, and may be sent twice:
the `webhook-id` is the same. While one event is tried again, others go on; their order is not kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from coditect.aio.backoff import Backoff
from coditect.aio.clock import Clock, SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.api.webhooks.sending import WebhookAttempt, WebhookSender, webhook_sender
from coditect.broker.port import Broker, Consumer, Delivery
from coditect.broker.topology import webhook_queue
from coditect.errors import CoditectError, InvalidTask, Unroutable
from coditect.messaging.event_filter import EventFilter
from coditect.model.event import Event
from coditect.operations.connections import Connections
from coditect.operations.coordination import webhooks
from coditect.operations.coordination.webhooks import Webhook
from coditect.telemetry.metrics import Metrics
from coditect.wire import control_messages, routing
from coditect.wire.events import as_document, read_event
from coditect.wire.json import dumps

log = logging.getLogger(__name__)

PREFETCH = 20
"""How many events of one webhook are under way at once."""
RELOAD_SECONDS = 5.0
ANNOUNCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WebhookRetries:
    """The retry policy for events that a webhook's receiver does not accept: number of attempts, and pauses."""

    most_attempts: int = 10
    first_seconds: float = 1.0
    longest_seconds: float = 300.0
    """The mean pauses are 1, 2, 4, ... 256 s, so that the last attempt is eight and a half minutes after the first."""

    def pause_seconds(self, attempts: int, chance: float) -> float:
        """Return the seconds to wait after so many failed attempts: their mean pause times 0.5 + `chance` (0 to 1)."""
        return Backoff(self.first_seconds, self.longest_seconds).pause(attempts) * (0.5 + chance)


@dataclass(slots=True)
class OpenWebhook:
    """A webhook whose queue this process consumes, with its event filter and the counts of its events."""

    webhook: Webhook
    selection: EventFilter
    consumer: Consumer | None = None
    taken: int = 0
    """The number of events that the receiver took from this process."""
    given_up: int = 0
    """The number of events that it did not take in any attempt."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class WebhookDelivery:
    """The delivery to webhooks by one API process, inside `async with`: it consumes their queues and posts events."""

    def __init__(
        self,
        opened: Connections,
        broker: Broker,
        sender: WebhookSender,
        *,
        clock: Clock,
        retries: WebhookRetries | None = None,
        reload_seconds: float = RELOAD_SECONDS,
    ) -> None:
        self._opened = opened
        self._broker = broker
        self._sender = sender
        self._clock = clock
        self._retries = retries or WebhookRetries()
        self._reload_seconds = reload_seconds
        self._webhooks: dict[str, OpenWebhook] = {}
        """The webhooks of which this process delivers events, by the names of their queues."""
        self._broken = set[str]()
        """The names of the webhooks whose rows are broken, as the log has it."""
        self._background = Supervisor()

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        self._background.keep(self._reload_always, name="webhooks", critical=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for known in tuple(self._webhooks.values()):
            await self._close(known)
        await self._background.__aexit__(kind, error, trace)

    def status(self, webhook: Webhook) -> OpenWebhook | None:
        """Return this process's state and counts of a webhook; None when the process does not deliver to it."""
        return self._webhooks.get(webhook.queue)

    async def _reload_always(self) -> None:
        while True:
            try:
                await self.reload()
            except CoditectError as error:
                log.debug("The webhooks cannot be read now", extra={"reason": str(error)})
            await asyncio.sleep(self._reload_seconds)

    async def reload(self) -> None:
        """Read the list of webhooks again: deliver to the active ones only, and delete the queues of removed ones.

        A removed webhook's queue is deleted if this process delivered to it.

        Raises:
            CoditectError: any error of the control plane or the broker.
        """
        kept = await webhooks.stored_webhooks(self._opened)
        broken = {webhook.name: webhook.reason for webhook in kept if webhook.state == "broken"}
        self._log_broken(broken)
        listed = {webhook.queue: webhook for webhook in kept if webhook.name not in broken}
        for queue, known in tuple(self._webhooks.items()):
            webhook = listed.get(queue)
            if webhook is None or not webhook.active:
                await self._close(known)
            if webhook is None and known.webhook.name not in broken:
                await self._broker.delete_queue(queue)
        for queue, webhook in listed.items():
            if webhook.active and queue not in self._webhooks:
                try:
                    await self._open(webhook)
                except CoditectError as error:  # the next reload tries it again, and the others do not wait for it
                    facts = {"webhook": webhook.name, "reason": str(error)}
                    log.warning("The queue of a webhook cannot be opened", extra=facts)

    def _log_broken(self, broken: Mapping[str, str]) -> None:
        for name in broken.keys() - self._broken:
            log.error("A webhook is broken and gets no events", extra={"webhook": name, "reason": broken[name]})
        self._broken = set(broken)

    async def _open(self, webhook: Webhook) -> None:
        known = OpenWebhook(webhook, webhook.selection())
        await self._broker.declare(webhook_queue(webhook.queue, webhook.patterns()))
        take = partial(self._arrived, known)
        known.consumer = await self._broker.consume(webhook.queue, take, prefetch=PREFETCH, group="webhooks")
        self._webhooks[webhook.queue] = known
        await _announce(self._broker)

    async def _close(self, known: OpenWebhook) -> None:
        self._webhooks.pop(known.webhook.queue, None)
        known.closed.set()
        if known.consumer is not None:
            await known.consumer.cancel()

    # -- one event --------------------------------------------------------------------------------------

    def _arrived(self, known: OpenWebhook, delivery: Delivery) -> None:
        try:
            event = read_event(delivery.message, self._clock.now_ms())
            dumps(as_document(event))  # what can be read and not written would come again without end
        except InvalidTask as error:
            log.warning("An event was not readable", extra={"reason": str(error)})
            delivery.ack()
            return
        if known.selection.takes(event):
            self._background.start(self._deliver(known, delivery, event), name="webhook")
        else:
            delivery.ack()

    async def _deliver(self, known: OpenWebhook, delivery: Delivery, event: Event) -> None:
        """Send an event until taken; if all attempts fail, give it up, or disable a webhook that took none meanwhile.

        A webhook that wants no more events (410) is disabled at once. The event is requeued if the webhook is
        disabled, or the process ends.
        """
        settle: Callable[[], None] = delivery.requeue
        try:
            taken_before = known.taken
            attempt = await self._attempts(known, delivery, event)
            if attempt is None:
                return
            if attempt.taken:
                known.taken += 1
                settle = delivery.ack
            elif attempt.gone or known.taken == taken_before:
                await self._disable(known, attempt)
            else:
                known.given_up += 1
                settle = delivery.ack
                log.warning("A webhook did not take an event", extra=_facts(known, event, attempt))
        finally:
            settle()

    async def _attempts(self, known: OpenWebhook, delivery: Delivery, event: Event) -> WebhookAttempt | None:
        """Post an event to a webhook, with retries; return the last attempt, or None if the process must stop trying.

        It must stop when it no longer delivers to the webhook, or when the delivery is lost. There are no retries after
        an answer 410 (Gone).
        """
        attempt = None
        for number in range(1, self._retries.most_attempts + 1):
            attempt = await self._sender.send(known.webhook, event)
            if attempt.taken or attempt.gone or number == self._retries.most_attempts:
                break
            log.info("A webhook is tried again", extra=_facts(known, event, attempt) | {"attempts": number})
            pause = max(attempt.wait_seconds, self._retries.pause_seconds(number, self._clock.chance()))
            if await _closed_within(known, pause) or delivery.lost:
                return None
        return attempt

    async def _disable(self, known: OpenWebhook, attempt: WebhookAttempt) -> None:
        """Disable a webhook whose receiver takes no events any more; events that wait are kept."""
        if known.closed.is_set():
            return
        await self._close(known)
        self._sender.disabled.value += 1
        reason = "the receiver wants no more events (410)" if attempt.gone else self._failed_by(attempt)
        log.error("A webhook was disabled", extra={"webhook": known.webhook.name, "reason": reason})
        try:
            await webhooks.steer_webhook(self._opened, known.webhook.name, active=False, reason=reason)
        except CoditectError as error:  # it is opened again by the next reload, and fails again
            log.warning("The end of a webhook could not be kept", extra={"reason": str(error)})

    def _failed_by(self, attempt: WebhookAttempt) -> str:
        return f"{self._retries.most_attempts} attempts failed and none succeeded meanwhile: {attempt.reason}"


@asynccontextmanager
async def open_webhooks(
    opened: Connections, broker: Broker, *, key: str, private: bool, metrics: Metrics | None = None
) -> AsyncIterator[WebhookSender]:
    """Yield the sender that posts events to webhooks; with a `key`, events are delivered while the block runs.

    From the key the secrets of the webhooks' signatures are made; without it (an empty text) nothing is delivered.

    Raises:
        SetupError: when the key is too short.
    """
    async with AsyncExitStack() as stack:
        sender = await stack.enter_async_context(webhook_sender(key, private=private, metrics=metrics))
        if key:
            sender.check_key()
            await stack.enter_async_context(WebhookDelivery(opened, broker, sender, clock=SystemClock()))
        yield sender


async def _closed_within(known: OpenWebhook, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await known.closed.wait()
    except TimeoutError:
        return False
    return True


async def _announce(broker: Broker) -> None:
    """Tell the agents that somebody listens to events, because without a listener they publish none."""
    try:
        await broker.publish(
            control_messages.listen(), exchange=routing.BROADCAST, routing_key="", timeout_seconds=ANNOUNCE_SECONDS
        )
    except Unroutable:
        log.debug("No agent is there to be told that a webhook listens")


def _facts(known: OpenWebhook, event: Event, attempt: WebhookAttempt) -> dict[str, object]:
    return {"webhook": known.webhook.name, "event_type": event.type, "reason": attempt.reason}
