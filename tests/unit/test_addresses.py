"""Passwords of addresses are never shown, nor control characters of strangers, nor secrets in a representation."""

from __future__ import annotations

import io
import json
import logging
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import coditect
import dispatcher
from coditect.cli.terminal.failure import describe
from coditect.cli.terminal.output import Output, TableView, render, say
from coditect.errors import BrokerUnavailable
from coditect.settings.addresses import secrets_in, without_passwords
from coditect.settings.settings import Settings
from coditect.telemetry.logs import JsonLines, PlainLines

SAFE = ascii_letters + digits + "-._~%!$&()*+,;="
ENDS_A_URL = " /\"'"


@given(
    scheme=st.sampled_from(["amqp", "amqps", "redis", "rediss", "http", "https"]),
    user=st.text(SAFE, max_size=10),
    password=st.text(SAFE + ENDS_A_URL, min_size=1, max_size=30).map(lambda text: f"secret{text}"),
    before=st.text(max_size=20),
    after=st.sampled_from(["", "/", "/vhost", "/0?ssl=1", " and more", '"', "'}"]),
)
def test_password_is_nowhere_in_what_is_shown(scheme: str, user: str, password: str, before: str, after: str) -> None:
    shown = without_passwords(f"{before} {scheme}://{user}:{password}@broker.example:5672{after}")

    assert password not in shown
    assert f"{scheme}://{user}:***@broker.example:5672{after}" in shown


@pytest.mark.parametrize("password", ["pa@secret", "@secret", "secret@", "a@b@secret", "@a'secret", 'a"b@secret'])
def test_password_with_an_at_sign_is_hidden_whole(password: str) -> None:
    assert without_passwords(f"to amqp://user:{password}@host:1/v") == "to amqp://user:***@host:1/v"
    assert password in secrets_in(Settings(amqp_url=f"amqp://user:{password}@host:1/v"))


@pytest.mark.parametrize(
    "text",
    [
        "amqp://localhost:5672/",
        "http://[::1]:80/a@b",
        "http://[fe80::1%eth0]/a@b",
        "http://host:80/a@b",
        "amqp://host:5672, or ask a@b",
        "'http://host:80' of a@b",
        "http://host: it refuses a@b",
        "http://host:port is none\nask a@b",
        "no address: a@b",
        "a://b c:d@e",
    ],
)
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


def test_line_of_json_stays_json_where_its_passwords_have_quotes() -> None:
    record = logging.LogRecord("one", logging.WARNING, __file__, 1, 'amqp://u:a"secret@h/', (), None)
    vars(record).update({"at": "http://host:port", "owner": "me@there"})

    line = json.loads(JsonLines().format(record))

    assert (line["event"], line["at"], line["owner"]) == ("amqp://u:***@h/", "http://host:port", "me@there")


def test_errors_on_the_command_line_show_none() -> None:
    assert "secret" not in describe(BrokerUnavailable("It is gone", url="redis://:secret@127.0.0.1:6379/0"))


HOSTILE = "done\r\x1b[2J\x9b1A\u202e\n12:00:00 error   The fleet is lost"
ESCAPED = r"done\r\x1b[2J\x9b1A\u202e"


def test_text_of_strangers_stays_on_its_line_of_the_log() -> None:
    record = logging.LogRecord("one", logging.WARNING, __file__, 1, "A task failed: %s", (HOSTILE,), None)
    record.reason = HOSTILE

    line = PlainLines().format(record)

    assert line.isprintable()
    assert line.count(ESCAPED) == 2


def test_traceback_keeps_its_lines_and_no_other_control_character() -> None:
    record = logging.LogRecord("one", logging.WARNING, __file__, 1, "A task failed", (), None)
    record.traceback = f"Traceback:\n  ValueError: {HOSTILE}"

    first, *more = PlainLines().format(record).split("\n")

    assert first.endswith("A task failed")
    assert len(more) == 3
    assert all(line.isprintable() for line in more)


def test_tables_and_remarks_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    render(Output.TABLE, None, TableView(("agent", "tags"), [(HOSTILE, [HOSTILE])]))
    say(HOSTILE)

    shown = capsys.readouterr()

    assert len(shown.out.splitlines()) == 2
    assert shown.out.count(ESCAPED) == 2
    assert shown.err.startswith(f"{ESCAPED}\n")


SECRETS = re.compile(
    r"password|secret|cookie|token|^env|(amqp|redis|management|blob)_url$|(approval|webhook|answer)_key$"
)
NO_SECRETS = {
    "CommandFields.environment",  # names alone
    "Evaluated.token",
    "Restore.token",
    "RestorePlan.token",
}
"""Fields of such names that hold no secret: most of these tokens name a state."""


def classes_of_the_product() -> Iterator[type]:
    for package in (coditect, dispatcher):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                found = vars(import_module(module.name)).values()
                yield from (one for one in found if isinstance(one, type) and one.__module__ == module.name)


def shown_fields(kind: type) -> Iterator[str]:
    """Yield the names of a class's fields with texts that its representation shows."""
    if is_dataclass(kind):
        yield from (one.name for one in fields(kind) if one.repr and "int" not in str(one.type))
    elif issubclass(kind, BaseModel):
        yield from (name for name, one in kind.model_fields.items() if one.repr and one.annotation is not int)


def test_no_secret_is_in_the_representation_of_an_object() -> None:
    shown = {f"{kind.__name__}.{name}" for kind in classes_of_the_product() for name in shown_fields(kind)}

    assert "Settings.health_host" in shown
    assert {name for name in shown if SECRETS.search(name.partition(".")[2])} == NO_SECRETS
