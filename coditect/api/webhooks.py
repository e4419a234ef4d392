"""Webhooks: events posted to URLs, signed as Standard Webhooks describes, and tried again until taken or given up.

`coditect.client.webhooks` keeps them. Here one event is sent, to a checked address and without
redirects, and the events of each webhook's queue until they are taken or given up. API processes share the queues, so
any number of them may run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Self

from standardwebhooks import Webhook as Signature

from coditect.aio.clock import Clock, SystemClock
from coditect.aio.supervisor import Backoff, Supervisor, happened
from coditect.broker.port import Broker, Consumer, Delivery, tell
from coditect.broker.topology import webhook_queue
from coditect.client.webhooks import Webhook, check_key
from coditect.errors import CoditectError, InvalidTask
from coditect.integrations.http.addresses import AllowedHosts, webhook_hosts
from coditect.integrations.http.calls import AgentCalls, HttpAnswer, agent_calls
from coditect.messaging.event_stream import EventFilter
from coditect.model.message import Event
from coditect.operations.connections import Connections
from coditect.telemetry.metrics import WEBHOOK_ATTEMPTS, WEBHOOK_SECONDS, WEBHOOKS_DISABLED, MemoryMetrics, Metrics
from coditect.wire import control_messages
from coditect.wire.events import as_document, read_event
from coditect.wire.json import dumps

ATTEMPT_SECONDS = 15.0
"""How long a receiver may take to answer, as Standard Webhooks recommends."""
CONTENT_TYPE = "application/cloudevents+json"
LONGEST_WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class WebhookAttempt:
    """The result of one POST to a webhook's URL."""

    status: int | None
    """The status of the answer; None when there was none."""
    reason: str = ""
    """Why the event was not taken; empty when it was."""
    gone: bool = False
    """Whether the receiver wants no more events (status 410)."""
    wait_seconds: float = 0.0
    """How long the receiver asks to wait, at most five minutes."""

    @property
    def taken(self) -> bool:
        """Tell whether the receiver accepted the event."""
        return not self.reason


class WebhookSender:
    """The sender of an API process's webhooks: one HTTP client, and the key from which their secrets are made."""

    def __init__(self, calls: AgentCalls, key: str, metrics: Metrics, hosts: AllowedHosts) -> None:
        self._calls = calls
        self._key = key
        self.hosts = hosts
        self._taken, self._failed = (metrics.counter(WEBHOOK_ATTEMPTS, outcome=one) for one in ("taken", "failed"))
        self._seconds = metrics.histogram(WEBHOOK_SECONDS)
        self.disabled = metrics.counter(WEBHOOKS_DISABLED)
        """The webhooks that were disabled because they took nothing; counted by who disables them."""

    def check_key(self) -> None:
        """Raise an error unless the settings have a key, long enough, from which webhooks' signing secrets are made.

        Raises:
            SetupError: when the settings have no key, or a short one.
        """
        check_key(self._key)

    def secret(self, webhook: Webhook) -> str:
        """Return the secret by which a webhook's events are signed."""
        return webhook.secret(check_key(self._key))

    async def send_test(self, webhook: Webhook, clock: Clock) -> WebhookAttempt:
        """Post an event `webhook.test` once."""
        event = Event("webhook.test", "/api", clock.new_id(), clock.now_ms(), webhook.name)
        return await self.send(webhook, event)

    async def send(self, webhook: Webhook, event: Event) -> WebhookAttempt:
        """Post an event once; every attempt has the same `webhook-id`, by which a receiver knows a repetition."""
        begun = time.perf_counter()
        attempt = await self._post(webhook, event)
        self._seconds.record(time.perf_counter() - begun)
        (self._taken if attempt.taken else self._failed).value += 1
        return attempt

    async def _post(self, webhook: Webhook, event: Event) -> WebhookAttempt:
        body = dumps(as_document(event))
        headers = _signed(event_id(event), body, self.secret(webhook))
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                answer = await self._calls.request("POST", webhook.url, body, headers, whole=False)
        except TimeoutError:
            return WebhookAttempt(None, f"no answer within {ATTEMPT_SECONDS:.0f} s")
        except CoditectError as error:
            return WebhookAttempt(None, str(error.facts.get("reason") or error)[:300])
        return _judged(answer)


@asynccontextmanager
async def webhook_sender(key: str, *, private: bool, metrics: Metrics | None = None) -> AsyncIterator[WebhookSender]:
    """Yield a sender that posts events to webhooks, for an `async with` block; `private` allows it private addresses.

    Loopback addresses count as private. The secrets of the webhooks' signatures are made from `key`.
    """
    hosts = webhook_hosts(private=private)
    async with agent_calls(hosts, most_bytes=0) as calls:
        yield WebhookSender(calls, key, metrics or MemoryMetrics(), hosts)


def event_id(event: Event) -> str:
    """Return the `webhook-id` of an event, the same for each delivery; safe in a header, whatever the event's id is."""
    drawn = f"{event.source}\0{event.id}".encode(errors="surrogatepass")
    return f"evt_{hashlib.sha256(drawn).hexdigest()[:32]}"


def _signed(identity: str, body: bytes, secret: str) -> dict[str, str]:
    now = datetime.now(UTC)  # the library signs a wrong instant for any other zone
    return {
        "content-type": CONTENT_TYPE,
        "webhook-id": identity,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signature(secret).sign(identity, now, body.decode()),
    }


def _judged(answer: HttpAnswer) -> WebhookAttempt:
    status = answer.status
    if 200 <= status < 300:
        return WebhookAttempt(status)
    if 300 <= status < 400:
        return WebhookAttempt(status, f"{status}: redirects are not followed")
    named = next((known.phrase for known in HTTPStatus if known == status), "unknown status")
    wait_seconds = answer.pause_seconds(limit=LONGEST_WAIT_SECONDS) or 0.0
    return WebhookAttempt(status, f"{status} {named}", status == HTTPStatus.GONE, wait_seconds)


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
        async with self._opened.fleet() as client:
            kept = await client.webhooks.stored()
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
            if await happened(known.closed, pause) or delivery.lost:
                return None
        return attempt

    async def _disable(self, known: OpenWebhook, attempt: WebhookAttempt) -> None:
        """Disable a webhook whose receiver takes no events any more; events that wait are kept."""
        if known.closed.is_set():
            return
        await self._close(known)
        self._sender.disabled.value += 1
        reason = f"{self._retries.most_attempts} attempts failed and none succeeded meanwhile: {attempt.reason}"
        if attempt.gone:
            reason = "the receiver wants no more events (410)"
        log.error("A webhook was disabled", extra={"webhook": known.webhook.name, "reason": reason})
        try:
            async with self._opened.fleet() as client:
                await client.webhooks.disable(known.webhook.name, reason=reason)
        except CoditectError as error:  # it is opened again by the next reload, and fails again
            log.warning("The end of a webhook could not be kept", extra={"reason": str(error)})


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


async def _announce(broker: Broker) -> None:
    """Tell the agents that somebody listens to events, because without a listener they publish none."""
    if not await tell(broker, control_messages.listen(), within_seconds=ANNOUNCE_SECONDS):
        log.debug("No agent is there to be told that a webhook listens")


def _facts(known: OpenWebhook, event: Event, attempt: WebhookAttempt) -> dict[str, object]:
    return {"webhook": known.webhook.name, "event_type": event.type, "reason": attempt.reason}
