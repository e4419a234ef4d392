"""`coditect api key` and `webhook`: keys are made, listed and revoked; webhooks are disabled and enabled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Terminal


def test_a_key_is_printed_once_and_listed_without_its_secret(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODITECT_API_KEYS", str(tmp_path / "keys"))

    made = terminal.run("api", "key", "create", "ci", "--role", "operator")
    listed = terminal.run("api", "key", "list", "--output", "json")
    revoked = terminal.run("api", "key", "revoke", "ci")

    assert made.out.startswith("coditect_")
    assert made.out.strip() not in (tmp_path / "keys").read_text() + listed.out
    assert [(one["name"], one["role"]) for one in listed.json] == [("ci", "operator")]
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


def test_a_webhook_is_disabled_and_enabled(
    terminal: Terminal, plane: ScriptedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODITECT_API_WEBHOOK_KEY", "k" * 40)
    monkeypatch.setenv("CODITECT_PRIVATE_ADDRESSES", "webhooks")
    assert terminal.run("webhook", "create", "pager", "https://127.0.0.1/hook").code == 0

    disabled = terminal.run("webhook", "update", "pager", "--disabled")
    enabled = terminal.run("webhook", "update", "pager", "--enabled")

    assert disabled.err == "pager is disabled.\n"
    assert enabled.err.startswith("pager is undelivered: no running API posts its events")
    assert terminal.run("webhook", "update", "pager").code == 2
