"""Webhooks: kept by the control plane, signed, tried again, disabled when nothing is taken, never sent elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

import pytest
from standardwebhooks import Webhook as Receiver

from coditect.api.webhooks.delivering import WebhookDelivery, WebhookRetries
from coditect.api.webhooks.sending import WebhookAttempt, WebhookSender, event_id, webhook_sender
from coditect.broker.topology import Queue, Topology
from coditect.errors import InputError, NotFound, SetupError
from coditect.integrations.http.addresses import AllowedHosts
from coditect.model.event import Event
from coditect.operations.coordination import webhooks
from coditect.operations.coordination.webhooks import Webhook, check_filter, check_key, check_url
from coditect.telemetry.metrics import Counter, Histogram, MemoryMetrics
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.events import event_message
from coditect.wire.json import MOST_LEVELS
from tests.api import WEBHOOK_KEY, api_of, services_of

URL = "https://example.com/hook"


@dataclass(slots=True)
class Endpoint:
    """A receiver on a real socket, with the answers that a test chooses."""

    status: int = 204
    headers: str = ""
    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append((headers, body))
        writer.write(
            f"HTTP/1.1 {self.status} x\r\ncontent-length: 0\r\nconnection: close\r\n{self.headers}\r\n".encode()
        )
        await writer.drain()
        writer.close()


@asynccontextmanager
async def endpoint(status: int = 204, headers: str = "") -> AsyncIterator[Endpoint]:
    receiving = Endpoint(status, headers)
    server = await asyncio.start_server(receiving.answer, "127.0.0.1", 0)
    receiving.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?token=1"
    async with server:
        yield receiving


def webhook(url: str = URL, **chosen: list[str]) -> Webhook:
    return Webhook("pager", url, chosen, "ab" * 16, 1_000)


def event(number: int = 1, type_: str = "task.dead") -> Event:
    return Event(type_, "/agents/a-1", f"p-{number}", 1_000, f"t{number}", {"note": "é"})


# -- one attempt ------------------------------------------------------------------------------------------


async def test_event_is_signed_so_that_its_receiver_can_check_it() -> None:
    async with endpoint() as receiving, webhook_sender(WEBHOOK_KEY, private=True) as sender:
        to = webhook(receiving.url)
        attempt = await sender.send(to, event())

    headers, body = receiving.requests[0]
    checked = Receiver(to.secret(WEBHOOK_KEY)).verify(body, headers)
    assert attempt == WebhookAttempt(204)
    assert checked["subject"] == "t1"
    assert headers["webhook-id"] == event_id(event())
    assert headers["content-type"] == "application/cloudevents+json"


@pytest.mark.parametrize(("status", "reason"), [(302, "redirects are not followed"), (500, "Internal"), (799, "799")])
async def test_other_statuses_are_no_success(status: int, reason: str) -> None:
    elsewhere = "location: http://127.0.0.1:1/\r\n"
    async with endpoint(status, elsewhere) as receiving, webhook_sender(WEBHOOK_KEY, private=True) as sender:
        attempt = await sender.send(webhook(receiving.url), event())

    assert not attempt.taken
    assert reason in attempt.reason
    assert len(receiving.requests) == 1


async def test_receiver_may_ask_for_time_or_for_no_more() -> None:
    async with webhook_sender(WEBHOOK_KEY, private=True) as sender:
        async with endpoint(503, "retry-after: 9999\r\n") as busy:
            later = await sender.send(webhook(busy.url), event())
        async with endpoint(410) as ended:
            gone = await sender.send(webhook(ended.url), event())

    assert later.wait_seconds == 300.0
    assert gone.gone


async def test_posts_are_counted_by_their_outcome_with_their_durations() -> None:
    metrics = MemoryMetrics()
    async with webhook_sender(WEBHOOK_KEY, private=True, metrics=metrics) as sender:
        for status in (204, 500, 204):
            async with endpoint(status) as receiving:
                await sender.send(webhook(receiving.url), event())

    samples = metrics.samples()
    seconds = samples["coditect_webhook_attempt_duration_seconds", ()]
    assert isinstance(seconds, Histogram)
    assert (sum(seconds.counts), seconds.total > 0) == (3, True)
    found = {labels: one for (name, labels), one in samples.items() if name == "coditect_webhook_attempts_total"}
    assert found == {(("outcome", "taken"),): 2, (("outcome", "failed"),): 1}


async def test_private_address_is_refused_unless_the_settings_allow_it() -> None:
    async with endpoint() as receiving, webhook_sender(WEBHOOK_KEY, private=False) as sender:
        attempt = await sender.send(webhook(receiving.url), event())
        named = await sender.send(webhook(receiving.url.replace("127.0.0.1", "localhost")), event())

    assert receiving.requests == []
    assert "CODITECT_API_WEBHOOK_PRIVATE=true" in attempt.reason
    assert "CODITECT_API_WEBHOOK_PRIVATE=true" in named.reason


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("93.184.216.34", True, True),
        ("2606:2800:220:1::1", True, True),
        ("127.0.0.1", False, True),
        ("10.0.0.1", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("64:ff9b::7f00:1", False, True),
        ("64:ff9b::5db8:d822", True, True),
        ("2002:7f00:1::", False, True),
        ("::7f00:1", False, True),
        ("::ffff:0:7f00:1", False, True),
        ("64:ff9b:1::7f00:1", False, True),
        ("fec0::1", False, True),
        ("::a9fe:a9fe", False, False),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("0.0.0.0", False, False),
        ("224.0.0.1", False, False),
        ("100.64.0.1", False, False),
    ],
)
def test_addresses_that_may_be_posted_to(address: str, public: bool, private: bool) -> None:
    allowed = [AllowedHosts(("*",), setting)._allows(ip_address(address)) for setting in (False, True)]

    assert allowed == [public, private]


def test_webhook_id_is_safe_in_a_header_and_stays_the_same() -> None:
    strange = Event("x", "/s\r\n", "1\r\nevil: 1", 0)

    assert event_id(strange) == event_id(strange)
    assert event_id(strange).replace("_", "").isalnum()
    assert event_id(event(1)) != event_id(event(2))


def test_secret_depends_on_key_name_and_salt() -> None:
    one = webhook()
    others = [
        one.secret("x" * 32),
        Webhook("other", URL, {}, one.salt, 0).secret(WEBHOOK_KEY),
        Webhook("pager", URL, {}, "cd" * 16, 0).secret(WEBHOOK_KEY),
    ]

    assert one.secret(WEBHOOK_KEY).startswith("whsec_")
    assert len({one.secret(WEBHOOK_KEY), *others}) == 4
    with pytest.raises(SetupError, match="CODITECT_API_WEBHOOK_KEY"):
        check_key("short")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com",
        "https://",
        "https://a:b@example.com",
        "https://example.com/#f",
        "https://exa mple.com",
        "https://example.com:99999/",
        "https://[::1",
        f"https://example.com/{'a' * 2_000}",
        "https://exämple.com",
        "x",
    ],
)
def test_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url)


def test_filter_is_checked() -> None:
    assert check_filter({"kind": ["task", "task"], "agent": []}) == {"kind": ["task"]}
    for wrong in ({"kind": ["task #"]}, {"color": ["red"]}, {"task": [""]}, {"task": ["t"] * 101}):
        with pytest.raises(InputError):
            check_filter(wrong)
    assert webhook(kind=["task", "workflow.failed"]).patterns() == ("task.#", "workflow.failed.#")
    assert webhook(agent=["a"]).patterns() == ("#",)


# -- delivery ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scripted(WebhookSender):
    """A sender that answers as a test chooses, attempt by attempt."""

    results: list[WebhookAttempt] = field(default_factory=list)
    default: WebhookAttempt = field(default_factory=lambda: WebhookAttempt(204))
    sent: list[str] = field(default_factory=list)
    disabled: Counter = field(default_factory=Counter)

    async def send(self, webhook: Webhook, event: Event) -> WebhookAttempt:
        self.sent.append(event.subject)
        return self.results.pop(0) if self.results else self.default


FAILED = WebhookAttempt(500, "500 Internal Server Error")


@asynccontextmanager
async def delivering(fleet: TestFleet, sender: Scripted, most_attempts: int = 3) -> AsyncIterator[WebhookDelivery]:
    retries = WebhookRetries(most_attempts=most_attempts)
    async with (
        services_of(fleet.server, fleet.registry, fleet.client) as services,
        WebhookDelivery(
            services.opened, services.broker, sender, clock=fleet.client._clock, retries=retries
        ) as delivery,
    ):
        yield delivery


async def added(fleet: TestFleet, **chosen: list[str]) -> Webhook:
    async with services_of(fleet.server, fleet.registry, fleet.client) as services:
        return await webhooks.add_webhook(services.opened, "pager", URL, chosen, now_ms=1_000)


async def listed(fleet: TestFleet) -> list[Webhook]:
    async with services_of(fleet.server, fleet.registry, fleet.client) as services:
        return await webhooks.list_webhooks(services.opened)


async def test_events_that_fit_are_sent_and_those_before_the_process_too() -> None:
    sender = Scripted()
    async with TestFleet() as fleet:
        await added(fleet, kind=["repo"])
        await fleet.client.emit("repo.pushed", subject="before")
        async with delivering(fleet, sender):
            await fleet.advance("6s")
            await fleet.client.emit("repo.pushed", subject="after")
            await fleet.client.emit("other.pushed", subject="other")
            await fleet.advance("6s")

    assert sender.sent == ["before", "after"]


async def test_event_is_tried_again_until_it_is_taken() -> None:
    sender = Scripted([FAILED, FAILED])
    async with TestFleet() as fleet:
        to = await added(fleet)
        async with delivering(fleet, sender) as delivery:
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("20s")
            status = delivery.status(to)
            left = await fleet.client._broker.stats(to.queue)

    assert sender.sent == ["one"] * 3
    assert status is not None and status.taken == 1
    assert left is not None and left.messages == 0


async def test_webhook_that_takes_nothing_is_disabled_with_the_reason_and_keeps_its_events() -> None:
    sender = Scripted(default=FAILED)
    async with TestFleet() as fleet:
        to = await added(fleet, kind=["repo"])
        async with delivering(fleet, sender):
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("60s")
            [disabled] = await listed(fleet)
            left = await fleet.client._broker.stats(to.queue)
            sender.default = WebhookAttempt(200)
            async with services_of(fleet.server, fleet.registry, fleet.client) as services:
                await webhooks.steer_webhook(services.opened, "pager", active=True)
            await fleet.advance("10s")

    assert (disabled.state, disabled.active) == ("disabled", False)
    assert sender.disabled.value == 1
    assert "3 attempts failed" in disabled.reason
    assert "500" in disabled.reason
    assert left is not None and left.messages == 1
    assert sender.sent == ["one"] * 4


async def test_event_that_alone_is_not_taken_is_given_up() -> None:
    sender = Scripted()
    refused = "poison"

    async def send(webhook: Webhook, event: Event) -> WebhookAttempt:
        sender.sent.append(event.subject)
        return FAILED if event.subject == refused else WebhookAttempt(200)

    sender.send = send  # type: ignore[method-assign]
    async with TestFleet() as fleet:
        to = await added(fleet)
        async with delivering(fleet, sender) as delivery:
            await fleet.client.emit("repo.pushed", subject=refused)
            await fleet.client.emit("repo.pushed", subject="fine")
            await fleet.advance("60s")
            status = delivery.status(to)

    assert status is not None
    assert (status.taken, status.given_up) == (1, 1)


async def test_receiver_that_is_gone_is_disabled_at_once() -> None:
    sender = Scripted(default=WebhookAttempt(410, "410 Gone", gone=True))
    async with TestFleet() as fleet:
        await added(fleet)
        async with delivering(fleet, sender):
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("10s")
            [disabled] = await listed(fleet)

    assert "410" in disabled.reason
    assert sender.sent == ["one"]


async def test_event_that_no_json_can_carry_is_dropped_and_those_behind_it_are_sent() -> None:
    sender = Scripted()
    async with TestFleet() as fleet:
        to = await added(fleet)
        async with delivering(fleet, sender):
            deep = event_message(event())
            body = b"[" * 2 * MOST_LEVELS + b"]" * 2 * MOST_LEVELS  # read, but not written again
            await fleet.client._broker.publish(
                replace(deep, body=body), exchange=routing.EVENTS, routing_key="task.dead"
            )
            await fleet.client.emit("repo.pushed", subject="fine")
            await fleet.advance("20s")
            left = await fleet.client._broker.stats(to.queue)

    assert sender.sent == ["fine"]
    assert left is not None and left.messages == 0


async def test_webhook_whose_queue_cannot_be_opened_holds_up_no_other() -> None:
    sender = Scripted()
    async with TestFleet() as fleet, services_of(fleet.server, fleet.registry, fleet.client) as services:
        first, second = [
            await webhooks.add_webhook(services.opened, name, URL, {}, now_ms=1_000) for name in ("a", "b")
        ]
        await fleet.client._broker.delete_queue(first.queue)
        await fleet.client._broker.declare(Topology(queues=(Queue(first.queue, max_length=1),)))
        async with delivering(fleet, sender) as delivery:
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("10s")

            assert delivery.status(first) is None
            assert delivery.status(second) is not None
    assert sender.sent == ["one"]


async def test_removed_webhook_leaves_no_queue() -> None:
    async with TestFleet() as fleet:
        to = await added(fleet)
        async with delivering(fleet, Scripted()) as delivery:
            await fleet.advance("6s")
            async with services_of(fleet.server, fleet.registry, fleet.client) as services:
                await webhooks.remove_webhook(services.opened, "pager")
                with pytest.raises(NotFound):
                    await webhooks.remove_webhook(services.opened, "pager")
            await fleet.advance("6s")

            assert delivery.status(to) is None
        assert fleet.server.find(to.queue) is None


# -- the routes -------------------------------------------------------------------------------------------


async def test_webhooks_over_http() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        made = await http.put("/v1/webhooks/pager", json={"url": URL, "kind": ["task.dead"]})
        again = await http.put("/v1/webhooks/pager", json={"url": URL})
        wrong = await http.put("/v1/webhooks/other", json={"url": "x"})
        shown: list[dict[str, Any]] = (await http.get("/v1/webhooks")).json()
        disabled = await http.post("/v1/webhooks/pager/disable")
        enabled = await http.post("/v1/webhooks/pager/enable")
        removed = await http.delete("/v1/webhooks/pager")
        missing = await http.post("/v1/webhooks/pager/test")

    assert (made.status_code, again.status_code, wrong.status_code) == (201, 422, 422)
    assert made.json()["secret"].startswith("whsec_")
    assert shown[0]["filter"] == {"kind": ["task.dead"]}
    assert "secret" not in json.dumps(shown)
    assert "salt" not in json.dumps(shown)
    assert (disabled.json()["state"], enabled.json()["state"]) == ("disabled", "active")
    assert (removed.status_code, missing.status_code) == (204, 404)
