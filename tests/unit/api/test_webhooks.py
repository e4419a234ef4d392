"""Webhooks as they are delivered: kept by the control plane, tried again, disabled when nothing is taken."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import pytest

from coditect import Agent, Context, Workflow
from coditect.api.webhooks import WebhookAttempt, WebhookDelivery, WebhookRetries, WebhookSender
from coditect.broker.topology import Queue, Topology
from coditect.client.webhooks import KEY, SPACE, Webhook, Webhooks
from coditect.collaboration.state import reserved
from coditect.errors import InputError, InvalidTask, NotFound
from coditect.integrations.http.addresses import webhook_hosts
from coditect.integrations.http.calls import AgentCalls, HttpAnswer
from coditect.model.message import Event
from coditect.telemetry.metrics import Counter, MemoryMetrics
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.control import COORDINATION
from coditect.wire.events import event_message
from coditect.wire.json import MAX_JSON_LEVELS
from tests.api import WEBHOOK_KEY, api_of, services_of

URL = "https://example.com/hook"
OTHER = Webhook("other", URL, {}, "ab" * 16, 1_000)


def event(number: int = 1, type_: str = "task.dead") -> Event:
    return Event(type_, "/agents/a-1", f"p-{number}", 1_000, f"t{number}", {"note": "é"})


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


@dataclass(frozen=True, slots=True)
class Calls:
    """A receiver that takes every event, in place of the HTTP client, and keeps the bodies."""

    bodies: list[Any] = field(default_factory=list)

    async def request(self, _method: str, _url: str, body: bytes, _headers: dict[str, str], **_: bool) -> HttpAnswer:
        self.bodies.append(json.loads(body))
        return HttpAnswer(204, b"", None)


FAILED = WebhookAttempt(500, "500 Internal Server Error")


@asynccontextmanager
async def delivering(fleet: TestFleet, sender: WebhookSender, most_attempts: int = 3) -> AsyncIterator[WebhookDelivery]:
    retries = WebhookRetries(most_attempts=most_attempts)
    async with (
        services_of(fleet.server, fleet.registry, fleet.client) as services,
        WebhookDelivery(
            services.opened, services.broker, sender, clock=fleet.client._clock, retries=retries
        ) as delivery,
    ):
        yield delivery


async def added(fleet: TestFleet, kind: tuple[str, ...] = ()) -> Webhook:
    return await fleet.client.webhooks.create("pager", URL, kind=kind)


async def listed(fleet: TestFleet) -> list[Webhook]:
    return [webhook async for webhook in fleet.client.webhooks.list()]


async def test_events_that_fit_are_sent_and_those_before_the_process_too() -> None:
    sender = Scripted()
    async with TestFleet() as fleet:
        await added(fleet, kind=("repo",))
        await fleet.client.emit("repo.pushed", subject="before")
        async with delivering(fleet, sender):
            await fleet.advance("6s")
            await fleet.client.emit("repo.pushed", subject="after")
            await fleet.client.emit("other.pushed", subject="other")
            await fleet.advance("6s")

    assert sender.sent == ["before", "after"]


async def test_body_has_what_is_approved_with_the_question() -> None:
    counter, flow, calls = Agent("counter"), Workflow("release"), Calls()
    counter.capability("text.count")(len)
    count = flow.task("text.count", flow.input, name="count")
    flow.approval("Ship it?", name="gate", after=[count])
    sender = WebhookSender(cast(AgentCalls, calls), WEBHOOK_KEY, MemoryMetrics(), webhook_hosts(private=False))
    async with TestFleet(agents=[counter]) as fleet:
        await added(fleet, kind=("approval.asked",))
        async with delivering(fleet, sender):
            await fleet.start(flow, "four", labels={"team": "blue"})
            await fleet.advance("6s")

    [body] = calls.bodies
    about = {"labels": {"team": "blue"}, "input": None, "results": {"count": 4}, "workflow_input": "four"}
    assert (body["data"]["question"], body["data"]["about"]) == ("Ship it?", about)


async def test_webhook_is_undelivered_until_an_api_posts_its_events() -> None:
    async with TestFleet() as fleet:
        webhook = await added(fleet)
        [before] = await listed(fleet)
        awaited = await fleet.client.webhooks.delivered(webhook, within_seconds=0)
        async with delivering(fleet, Scripted()):
            await fleet.advance("6s")
            [posting] = await listed(fleet)
        [after] = await listed(fleet)

    assert [one.state for one in (before, posting, after)] == ["undelivered", "active", "undelivered"]
    assert awaited == before
    assert "CODITECT_API_WEBHOOK_KEY" in before.reason


async def test_event_is_tried_again_until_it_is_taken() -> None:
    sender = Scripted([FAILED, FAILED])
    async with TestFleet() as fleet:
        to = await added(fleet)
        async with delivering(fleet, sender) as delivery:
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("20s")
            status = delivery.status(to)
            left = fleet.server.queue(to.queue)
            assert (left.stats.messages, left.in_hand) == (0, 0)

    assert sender.sent == ["one"] * 3
    assert status is not None and status.taken == 1


async def test_webhook_that_takes_nothing_is_disabled_with_the_reason_and_keeps_its_events() -> None:
    sender = Scripted(default=FAILED)
    async with TestFleet() as fleet:
        to = await added(fleet, kind=("repo",))
        async with delivering(fleet, sender):
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("60s")
            [disabled] = await listed(fleet)
            left = await fleet.client._broker.stats(to.queue)
            sender.default = WebhookAttempt(200)
            await fleet.client.webhooks.enable("pager")
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
    assert (status.taken, sender.sent.count(refused)) == (1, 3)


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
            body = b"[" * 2 * MAX_JSON_LEVELS + b"]" * 2 * MAX_JSON_LEVELS  # read, but not written again
            await fleet.client._broker.publish(
                replace(deep, body=body), exchange=routing.EVENTS, routing_key="task.dead"
            )
            await fleet.client.emit("repo.pushed", subject="fine")
            await fleet.advance("20s")
            left = fleet.server.queue(to.queue)
            assert (left.stats.messages, left.in_hand) == (0, 0)

    assert sender.sent == ["fine"]


async def test_webhook_whose_queue_cannot_be_opened_holds_up_no_other() -> None:
    sender = Scripted()
    async with TestFleet() as fleet:
        first, second = [await fleet.client.webhooks.create(name, URL) for name in ("a", "b")]
        await fleet.client._broker.delete_queue(first.queue)
        await fleet.client._broker.declare(Topology(queues=(Queue(first.queue, max_length=1),)))
        async with delivering(fleet, sender) as delivery:
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("10s")

            assert delivery.status(first) is None
            assert delivery.status(second) is not None
    assert sender.sent == ["one"]


async def test_loop_that_reads_the_webhooks_and_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, faults = Webhooks.stored, [RuntimeError("the fault that was asked for")]

    async def read_or_fail(webhooks: Webhooks) -> tuple[Webhook, ...]:
        if faults:
            raise faults.pop()
        return await stored(webhooks)

    sender = Scripted()
    async with TestFleet() as fleet:
        await added(fleet)
        monkeypatch.setattr(Webhooks, "stored", read_or_fail)
        async with delivering(fleet, sender):
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("6s")
        fleet.forgive_crashes()

    assert (faults, sender.sent) == ([], ["one"])


async def test_removed_webhook_leaves_no_queue() -> None:
    async with TestFleet() as fleet:
        to = await added(fleet)
        async with delivering(fleet, Scripted()) as delivery:
            await fleet.advance("6s")
            await fleet.client.webhooks.delete("pager")
            with pytest.raises(NotFound):
                await fleet.client.webhooks.delete("pager")
            await fleet.advance("6s")

            assert delivery.status(to) is None
        assert fleet.server.find(to.queue) is None


async def test_a_broken_row_is_shown_and_the_other_webhooks_deliver() -> None:
    sender = Scripted()
    rows = {"no row": 7, "half": {"name": "half"}, "odd": {**asdict(OTHER), "name": "odd", "salt": 3}, "x": None}
    async with TestFleet() as fleet:
        to = await added(fleet)
        space = reserved(fleet.client.state(SPACE), COORDINATION)
        await space.update(KEY, lambda kept: kept | rows)
        async with delivering(fleet, sender):
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("10s")
        states = {webhook.name: webhook.state for webhook in await listed(fleet)}
        with pytest.raises(InvalidTask, match="broken"):
            await fleet.client.webhooks.enable("odd")
        for name in rows:
            await fleet.client.webhooks.delete(name)
        left = await listed(fleet)

    assert sender.sent[-1] == "one"
    assert states == {**dict.fromkeys(rows, "broken"), "pager": "undelivered"}
    assert [one.queue for one in left] == [to.queue]


async def test_a_row_that_breaks_keeps_the_events_of_its_webhook() -> None:
    async with TestFleet() as fleet:
        to = await added(fleet)
        space = reserved(fleet.client.state(SPACE), COORDINATION)
        async with delivering(fleet, Scripted()):
            await fleet.advance("6s")
            await space.merge(KEY, {to.name: {"url": 7}})
            await fleet.advance("6s")
            await fleet.client.emit("repo.pushed", subject="one")
            await fleet.advance("1s")

        assert fleet.server.queue(to.queue).stats.messages == 1


@pytest.mark.parametrize("name", [SPACE, "coditect.other", "langgraph", "langgraph:thread"])
async def test_agents_and_clients_cannot_write_to_a_reserved_space(name: str) -> None:
    writer = Agent("writer")

    @writer.capability("write", retry=1)
    async def write(_: None, ctx: Context) -> list[str]:
        space, refused = ctx.state(name), []
        for attempt in (space, reserved(space, COORDINATION)):
            for write in (attempt.put("all", {}), attempt.merge("all", {}), attempt.delete("all")):
                try:
                    await write
                except InputError as error:
                    refused.append(error.sentence)
        return refused

    async with TestFleet(agents=[writer]) as fleet:
        with pytest.raises(InputError, match="keeps this space"):
            await fleet.client.state(name).put("all", {})
        refused = await fleet.request("write", model=list[str])

    assert len(refused) == 6


# -- the routes -------------------------------------------------------------------------------------------


async def test_webhooks_over_http() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        made = await http.put("/v1/webhooks/pager", json={"url": URL, "kind": ["task.dead"]})
        again = await http.put("/v1/webhooks/pager", json={"url": URL})
        wrong = await http.put("/v1/webhooks/other", json={"url": "x"})
        unnamed = await http.put("/v1/webhooks/other", json={"url": "https://a..b/"})
        metadata = await http.put("/v1/webhooks/other", json={"url": "http://169.254.169.254/latest"})
        shown: list[dict[str, Any]] = (await http.get("/v1/webhooks")).json()
        disabled = await http.post("/v1/webhooks/pager/disable")
        enabled = await http.post("/v1/webhooks/pager/enable")
        removed = await http.delete("/v1/webhooks/pager")
        missing = await http.post("/v1/webhooks/pager/test")

    assert (made.status_code, again.status_code, wrong.status_code) == (201, 422, 422)
    assert (unnamed.status_code, unnamed.json()["facts"]["given"]) == (422, "https://a..b/")
    assert (metadata.status_code, metadata.json()["facts"]["address"]) == (422, "169.254.169.254")
    assert made.json()["secret"].startswith("whsec_")
    assert shown[0]["filter"] == {"kind": ["task.dead"]}
    assert "secret" not in json.dumps(shown)
    assert "salt" not in json.dumps(shown)
    assert (disabled.json()["state"], enabled.json()["state"]) == ("disabled", "active")
    assert (removed.status_code, missing.status_code) == (204, 404)
