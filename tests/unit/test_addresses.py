"""Passwords of addresses are never shown."""

from __future__ import annotations

import io
import logging
import sys
from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.cli.terminal.failure import describe
from coditect.errors import BrokerUnavailable
from coditect.settings.addresses import without_passwords
from coditect.telemetry.logs import JsonLines, PlainLines

SAFE = ascii_letters + digits + "-._~%!$&()*+,;="


@given(
    scheme=st.sampled_from(["amqp", "amqps", "redis", "rediss", "http", "https"]),
    user=st.text(SAFE, max_size=10),
    password=st.text(SAFE, min_size=1, max_size=30).map(lambda text: f"secret{text}"),
    before=st.text(max_size=20),
    after=st.sampled_from(["", "/", "/vhost", "/0?ssl=1", " and more", '"', "'}"]),
)
def test_password_is_nowhere_in_what_is_shown(scheme: str, user: str, password: str, before: str, after: str) -> None:
    shown = without_passwords(f"{before} {scheme}://{user}:{password}@broker.example:5672{after}")

    assert password not in shown
    assert f"{scheme}://{user}:***@broker.example:5672{after}" in shown


@pytest.mark.parametrize("text", ["amqp://localhost:5672/", "http://[::1]:80/a@b", "no address: a@b", "a://b c:d@e"])
def test_what_has_no_password_is_shown_as_it_is(text: str) -> None:
    assert without_passwords(text) == text


@pytest.mark.parametrize("formatter", [JsonLines(), PlainLines()])
def test_log_lines_show_none(formatter: logging.Formatter) -> None:
    url = "amqp://coditect:secret@127.0.0.1:5672/"
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log = logging.Logger("one")
    log.addHandler(handler)

    try:
        raise BrokerUnavailable("The broker cannot be reached", url=url)
    except BrokerUnavailable:
        log.warning("It went wrong with %s", url, extra={"reason": url}, exc_info=sys.exc_info())

    assert "secret" not in stream.getvalue()
    assert stream.getvalue().count("coditect:***@127.0.0.1") >= 3


def test_errors_on_the_command_line_show_none() -> None:
    assert "secret" not in describe(BrokerUnavailable("It is gone", url="redis://:secret@127.0.0.1:6379/0"))
