"""Times as they are written: short and local on a terminal, whole in a pipe."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.cli.terminal.output import FieldsView, Moment, TableView, instant, show, write_json
from tests.unit.cli.scene import Terminal

NOON = int(datetime(2030, 6, 1, 12, tzinfo=UTC).timestamp() * 1000)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def _in_india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


def test_a_pipe_gets_whole_instants(capsys: pytest.CaptureFixture[str]) -> None:
    show(FieldsView({"at": instant(NOON)}))
    write_json({"at": instant(NOON)})

    assert (
        capsys.readouterr().out == 'at  2030-06-01T12:00:00.000+00:00\n{\n  "at": "2030-06-01T12:00:00.000+00:00"\n}\n'
    )


@pytest.mark.usefixtures("_in_india")
def test_a_terminal_gets_local_short_ones_and_json_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    show(FieldsView({"at": instant(NOON)}))
    show(TableView(("at", "now"), [(instant(NOON), instant(round(time.time() * 1000)))]))
    write_json(instant(NOON))

    fields, _, table, document = screen.getvalue().splitlines()
    assert fields == "at  2030-06-01 17:30"
    assert table.startswith("2030-06-01 17:30")
    assert len(table.split()[-1]) == len("17:30:00")
    assert document == '"2030-06-01T12:00:00.000+00:00"'


def test_what_is_no_utf_8_is_escaped_in_json(terminal: Terminal) -> None:
    ran = terminal.run("topology", "export", "--capability", "a.b", "--vhost", "\udcff")

    assert ran.json["queues"][0]["vhost"] == "\udcff"


@given(st.integers())
def test_any_number_of_milliseconds_is_written(ms: int) -> None:
    told = instant(ms)

    assert told
    assert not isinstance(told, Moment) or told.short
