"""`coditect api key` and `webhook`: keys are made, listed and revoked; webhooks are disabled and enabled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from coditect.aio.clock import Clock
from coditect.api.webhooks import WebhookAttempt, WebhookSender
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import webhook_queue
from coditect.client.client import Client
from coditect.client.webhooks import KEY, NO_API, Webhook
from tests.unit.cli.scene import Served, Terminal

PAGER = Webhook("pager", "https://127.0.0.1:1/hook", {}, "ab" * 16, 1_000)


class Posting(Served):
    """With an API that posts the pager's events beside every connection."""

    @asynccontextmanager
    async def fleet(self) -> AsyncIterator[Client]:
        async with super().fleet() as client, MemoryBroker(self.server, name="api") as api:
            await api.declare(webhook_queue(PAGER.queue, PAGER.patterns()))
            await api.consume(PAGER.queue, lambda delivery: None, prefetch=1)
            yield client


@pytest.fixture
def pager(served: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A fleet that has the webhook `pager`, on a machine where all else is well."""
    monkeypatch.setenv("CODITECT_API_WEBHOOK_KEY", "k" * 40)
    monkeypatch.setattr("coditect.local.doctor", lambda folder, **more: [])
    served.connections.plane.values[KEY] = {PAGER.name: asdict(PAGER)}
    return served


def posting(terminal: Terminal) -> None:
    terminal.connections = Posting(plane=terminal.connections.plane)


def test_a_key_is_printed_once_and_listed_without_its_secret(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODITECT_API_KEYS", str(tmp_path / "keys"))

    made = terminal.run("api", "key", "create", "ci", "--role", "operator")
    listed = terminal.run("api", "key", "list", "--output", "json")
    revoked = terminal.run("api", "key", "revoke", "ci")

    assert made.out.startswith("coditect_")
    assert made.out.strip() not in (tmp_path / "keys").read_text() + listed.out
    assert [(key["name"], key["role"]) for key in listed.json] == [("ci", "operator")]
    assert revoked.code == 0
    assert terminal.run("api", "key", "list", "--output", "json").json == []
    assert terminal.run("api", "key", "revoke", "ci").code == 4


def test_without_a_file_it_says_which_setting_names_one(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODITECT_API_KEYS", raising=False)

    refused = terminal.run("api", "key", "list")

    assert refused.code == 1
    assert "CODITECT_API_KEYS" in refused.err


@pytest.mark.parametrize(
    ("variable", "given", "fix"),
    [
        ("CODITECT_API_RATE", "lots", "CODITECT_API_RATE=100/s"),
        ("CODITECT_API_KEYS", "/", "CODITECT_API_KEYS=FILE"),
        ("CODITECT_API_KEYS", "/etc/passwd/keys", "CODITECT_API_KEYS=FILE"),
        ("CODITECT_API_OIDC_ISSUER", "http://login.example.com", "CODITECT_API_OIDC_ISSUER=https://"),
        ("CODITECT_API_WEBHOOK_KEY", "short", "set CODITECT_API_WEBHOOK_KEY"),
        ("CODITECT_API_HOST", "0.0.0.0", "CODITECT_API_HOST=127.0.0.1"),
    ],
)
def test_a_wrong_setting_ends_the_start_before_servers_are_waited_for_and_says_what_to_write(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, variable: str, given: str, fix: str
) -> None:
    monkeypatch.setenv("CODITECT_AMQP_URL", "amqp://127.0.0.1:1/")
    monkeypatch.setenv("CODITECT_API_PORT", "0")
    monkeypatch.setenv(variable, given)

    refused = terminal.run("api")

    assert refused.code == 1
    assert f"Fix: {fix}" in refused.err


def test_a_webhook_is_disabled_and_enabled(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODITECT_API_WEBHOOK_KEY", "k" * 40)
    monkeypatch.setenv("CODITECT_PRIVATE_ADDRESSES", "webhooks")
    assert terminal.run("webhook", "create", "pager", "https://127.0.0.1/hook").code == 0

    disabled = terminal.run("webhook", "update", "pager", "--disabled")
    enabled = terminal.run("webhook", "update", "pager", "--enabled")

    assert disabled.err == "pager is disabled.\n"
    assert enabled.err.startswith("pager is undelivered: no running API posts its events")
    assert terminal.run("webhook", "update", "pager").code == 2


def test_doctor_finds_the_webhooks_to_which_no_api_posts(pager: Terminal) -> None:
    ran = pager.run("doctor")
    posting(pager)
    well = pager.run("doctor", "--output", "json")

    assert ran.code == 1
    assert [line.split() for line in ran.out.splitlines() if "undelivered" in line] == [
        ["webhooks", "no", "undelivered:", "pager"]
    ]
    assert f"webhooks: {NO_API}" in ran.err
    assert (well.code, well.json[-1]) == (0, {"name": "webhooks", "ok": True, "detail": "1 webhooks", "fix": ""})


def test_doctor_says_nothing_of_webhooks_where_there_are_none(pager: Terminal) -> None:
    pager.connections.plane.values.clear()

    assert [check["name"] for check in pager.run("doctor", "--output", "json").json] == ["control plane"]


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "https://127.0.0.1/hook", "https://[fd00:ec2::254]/"])
def test_a_webhook_to_which_nothing_would_be_posted_is_not_created(pager: Terminal, url: str) -> None:
    refused = pager.run("webhook", "create", "other", url)

    assert refused.code == 2
    assert "do not allow this address" in refused.err
    assert list(pager.connections.plane.values[KEY]) == ["pager"]


def test_a_webhook_without_a_key_is_not_created(pager: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODITECT_API_WEBHOOK_KEY")

    refused = pager.run("webhook", "create", "other", "https://example.com/hook")

    assert (refused.code, "set CODITECT_API_WEBHOOK_KEY" in refused.err) == (1, True)
    assert list(pager.connections.plane.values[KEY]) == ["pager"]


def test_test_of_a_webhook_fails_while_no_api_posts_its_events(
    pager: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(sender: WebhookSender, webhook: Webhook, clock: Clock) -> WebhookAttempt:
        return WebhookAttempt(204)

    monkeypatch.setattr(WebhookSender, "send_test", taken)
    undelivered = pager.run("webhook", "test", "pager")
    posting(pager)
    delivered = pager.run("webhook", "test", "pager")

    assert (undelivered.code, delivered.code) == (1, 0)
    assert f"pager is undelivered: {NO_API}" in undelivered.err
    assert "undelivered" not in delivered.out + delivered.err
    assert "204" in undelivered.out
