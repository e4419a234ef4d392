"""One attempt to send an event to a webhook: signed, tried at an allowed address alone, and what its answer says."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from standardwebhooks import Webhook as Receiver

from coditect.api.webhooks import WebhookAttempt, event_id, webhook_sender
from coditect.client.webhooks import Webhook, check_filter, check_key, check_url
from coditect.errors import InputError, SetupError
from coditect.integrations.http.addresses import AllowedHosts
from coditect.model.message import Event
from coditect.telemetry.metrics import Histogram, MemoryMetrics
from tests.api import WEBHOOK_KEY

URL = "https://example.com/hook"


@dataclass(slots=True)
class Endpoint:
    """A receiver on a real socket, with the answers that a test chooses."""

    status: int = 204
    headers: str = ""
    url: str = ""
    body: bytes = b""
    """What follows the head; the connection stays open behind it if `length` promises more."""
    length: int = 0
    cut: bool = False
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append((headers, body))
        head_line = f"HTTP/1.1 {self.status} x\r\ncontent-length: {self.length}\r\nconnection: close\r\n"
        writer.write(f"{head_line}{self.headers}\r\n".encode() + self.body)
        with suppress(ConnectionError):  # the sender need not read the body
            await writer.drain()
            if len(self.body) < self.length and not self.cut:
                await reader.read()  # slow for ever: until the sender closes the connection
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def endpoint(status: int = 204, headers: str = "") -> AsyncIterator[Endpoint]:
    receiving = Endpoint(status, headers)
    server = await asyncio.start_server(receiving.answer, "127.0.0.1", 0)
    receiving.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?token=1"
    async with server:
        yield receiving
        await asyncio.gather(*receiving.tasks)


def webhook(url: str = URL, **chosen: list[str]) -> Webhook:
    return Webhook("pager", url, chosen, "ab" * 16, 1_000)


def event(number: int = 1, type_: str = "task.dead") -> Event:
    return Event(type_, "/agents/a-1", f"p-{number}", 1_000, f"t{number}", {"note": "é"})


async def test_event_is_signed_so_that_its_receiver_can_check_it() -> None:
    async with endpoint() as receiving, webhook_sender(WEBHOOK_KEY, private=True) as sender:
        to = webhook(receiving.url)
        attempt = await sender.send(to, event())

    headers, body = receiving.requests[0]
    checked = Receiver(to.secret(WEBHOOK_KEY)).verify(body, headers)
    assert attempt == WebhookAttempt(204)
    assert (checked["subject"], checked["data"]) == ("t1", {"note": "é"})
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
        async with endpoint(429, "retry-after: Fri, 31 Dec 2100 23:59:59 GMT\r\n") as limited:
            next_century = await sender.send(webhook(limited.url), event())
        async with endpoint(503, "retry-after: soon\r\n") as vague:
            soon = await sender.send(webhook(vague.url), event())
        async with endpoint(410) as ended:
            gone = await sender.send(webhook(ended.url), event())

    assert [one.wait_seconds for one in (later, next_century, soon)] == [300.0, 300.0, 0.0]
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
    assert "CODITECT_PRIVATE_ADDRESSES=webhooks" in attempt.reason
    assert "CODITECT_PRIVATE_ADDRESSES=webhooks" in named.reason


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
        "https://a..b/",
        "https://evil[::1]/",
        "https://[::1]evil/",
        "https://[v1.a]/",
        "x",
    ],
)
def test_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url)


def test_filter_is_checked() -> None:
    assert check_filter({"kind": ["task", "task"], "agent": []}) == {"kind": ["task"]}
    for wrong in ({"kind": ["task #"]}, {"color": ["red"]}, {"task": [""]}, {"task": [f"t{n}" for n in range(101)]}):
        with pytest.raises(InputError):
            check_filter(wrong)
    assert webhook(kind=["task", "workflow.failed"]).patterns() == ("task.#", "workflow.failed.#")
    assert webhook(agent=["a"]).patterns() == ("#",)


@pytest.mark.parametrize(
    ("headers", "body", "length", "cut"),
    [
        ("", b"x" * 3_000_000, 3_000_000, False),
        ("", b"", 1_000, False),
        ("content-encoding: gzip\r\n", gzip.compress(b"ok"), len(gzip.compress(b"ok")), False),
        ("content-encoding: odd\r\n", b"ok", 2, False),
        ("", b"half", 8, True),
    ],
    ids=["large", "slow", "compressed", "odd", "cut"],
)
@pytest.mark.parametrize(("status", "taken"), [(200, True), (500, False), (410, False)])
async def test_the_status_alone_says_whether_an_event_was_taken(
    headers: str, body: bytes, length: int, cut: bool, status: int, taken: bool
) -> None:
    async with endpoint(status, headers) as receiving, webhook_sender(WEBHOOK_KEY, private=True) as sender:
        receiving.body, receiving.length, receiving.cut = body, length, cut
        async with asyncio.timeout(10):
            attempt = await sender.send(webhook(receiving.url), event())

    assert (attempt.status, attempt.taken, attempt.gone) == (status, taken, status == 410)
