"""One POST of an event to a webhook: signed, to a checked address, without redirects.

The status of the answer alone says whether the event was taken: its body is not read, so a body that is large, slow,
compressed or cut off never has an event posted again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from standardwebhooks import Webhook as Signature

from coditect.aio.clock import Clock
from coditect.errors import CoditectError
from coditect.integrations.http.addresses import AllowedHosts, webhook_hosts
from coditect.integrations.http.calls import AgentCalls, HttpAnswer, agent_calls
from coditect.model.event import Event
from coditect.operations.coordination.webhooks import Webhook, check_key
from coditect.telemetry.metrics import MemoryMetrics, Metrics
from coditect.telemetry.names import WEBHOOK_ATTEMPTS, WEBHOOK_SECONDS, WEBHOOKS_DISABLED
from coditect.wire.events import as_document
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
                answer = await self._calls.deliver(webhook.url, body, headers)
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
    wait_seconds = answer.pause_seconds(most=LONGEST_WAIT_SECONDS) or 0.0
    return WebhookAttempt(status, f"{status} {named}", status == HTTPStatus.GONE, wait_seconds)
