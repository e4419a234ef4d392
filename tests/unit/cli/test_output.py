"""What commands print: times, lists in three formats, and live views that end with a key."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import termios
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coditect.aio.loop import run_loop
from coditect.cli.main import BRANCHES
from coditect.cli.terminal.options import ShownAnswer, present, quit_key
from coditect.cli.terminal.output import FieldsView, Moment, Output, TableView, instant, show, write_json, write_yaml
from coditect.errors import BrokerUnavailable
from coditect.model.registration import AgentRecord
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from tests.unit.cli.scene import AGENT, EVERY, Screen, Terminal

pytestmark = pytest.mark.usefixtures("_ctrl_c")


NOON = int(datetime(2030, 6, 1, 12, tzinfo=UTC).timestamp() * 1000)


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
    text = instant(ms)

    assert text
    assert not isinstance(text, Moment) or text.short


FORMATS = ["table", "json", "yaml"]
ALSO_LISTS = {("dispatcher", "status"), ("workflow", "get")}


LISTS = {words for words, command in EVERY.items() if words[-1] == "list" or command.help.startswith("List ")}


def options(command: Any) -> dict[str, Any]:
    return {name: parameter for parameter in command.params for name in parameter.opts}


def test_the_lists_are_found() -> None:
    nouns = {"agent", "capability", "workflow", "approval", "schedule", "trigger", "lock", "breaker", "dead"}

    assert {words[0] for words in EVERY} == set(BRANCHES)
    assert {(noun, "list") for noun in nouns} <= LISTS


@pytest.mark.parametrize("words", sorted(LISTS | ALSO_LISTS), ids=" ".join)
def test_every_list_has_the_formats_and_can_be_watched(words: tuple[str, ...]) -> None:
    found = options(EVERY[words])

    assert {"--output", "-o", "--watch", "-w"} <= set(found)
    assert found["--watch"].is_flag


@pytest.mark.parametrize("words", [words for words in EVERY if "--output" in options(EVERY[words])], ids=" ".join)
def test_every_output_has_the_same_formats(terminal: Terminal, words: tuple[str, ...]) -> None:
    text = terminal.run(*words, "--help").out

    assert f"--output <{'|'.join(FORMATS)}>" in text


@pytest.mark.parametrize(
    ("words", "remark"),
    [
        ("dead list", "No dead letters"),
        ("schedule list", "There is no schedule."),
        ("schedule list --heal", "No service is watched."),
    ],
)
def test_an_empty_list_says_so_on_stderr(terminal: Terminal, words: str, remark: str) -> None:
    ran = terminal.run(*words.split())

    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith(remark)


class Changing:
    """An answer that changes with each look; the last look ends in Ctrl-C."""

    def __init__(self, looks: int, *, failing: int = 0) -> None:
        self._looks, self._failing, self.count = looks, failing, 0

    async def __call__(self) -> ShownAnswer:
        self.count += 1
        if self.count == self._failing:
            raise BrokerUnavailable("The broker does not answer")
        if self.count == self._looks:
            signal.raise_signal(signal.SIGINT)
        table = TableView(("n", "word"), [(self.count, "yes")], "No number.")
        return ShownAnswer([{"n": self.count, "word": "yes"}], (table,), ("Some are not seen.",))


def watched(look: Changing, output: Output) -> None:
    present(look, output, watch=True, every_seconds=0.001)


def test_a_watched_table_in_a_pipe_is_a_block_for_each_look(capsys: pytest.CaptureFixture[str]) -> None:
    watched(Changing(3), Output.TABLE)

    printed = capsys.readouterr()
    assert printed.out == "N  WORD\n1  yes\n\nN  WORD\n2  yes\n\nN  WORD\n3  yes\n"
    assert printed.err == "Some are not seen.\n"


def test_watched_json_is_a_line_and_yaml_a_document_for_each_look(capsys: pytest.CaptureFixture[str]) -> None:
    watched(Changing(2), Output.JSON)
    lines = capsys.readouterr().out.splitlines()
    watched(Changing(2), Output.YAML)
    documents = list(yaml.safe_load_all(capsys.readouterr().out))

    assert [json.loads(line) for line in lines] == documents == [[{"n": n, "word": "yes"}] for n in (1, 2)]


def test_a_look_that_fails_is_told_and_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    watched(Changing(3, failing=2), Output.JSON)

    printed = capsys.readouterr()
    assert [json.loads(line)[0]["n"] for line in printed.out.splitlines()] == [1, 3]
    assert "The broker does not answer; it is tried again." in printed.err


def test_a_first_look_that_fails_is_an_error() -> None:
    with pytest.raises(BrokerUnavailable):
        watched(Changing(3, failing=1), Output.JSON)


def test_on_a_terminal_the_table_is_drawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")

    watched(Changing(3), Output.TABLE)

    drawn = screen.getvalue()
    assert "\x1b[1A" in drawn  # the cursor goes up, over what was drawn before
    assert drawn.count("q ends") == 4  # the last picture is drawn once more, to stay
    assert "\x1b[3" not in drawn  # no colour


class Interrupted(MemoryRegistry):
    """A directory that is read when the person at the terminal presses Ctrl-C."""

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        found = await super().find(search)
        signal.raise_signal(signal.SIGINT)
        return found


def test_a_watched_list_ends_well_on_ctrl_c(terminal: Terminal) -> None:
    terminal.connections.bridged = Interrupted()  # which is read last
    terminal.register()

    ran = terminal.run("agent", "list", "--watch", "--output", "json")

    assert (ran.code, [agent["agent_id"] for agent in ran.json]) == (0, [AGENT])


def test_yaml_and_json_tell_the_same(terminal: Terminal) -> None:
    terminal.register(trouble="yes: no\n- \x07 ü")

    agents = [yaml.safe_load(terminal.run("agent", "list", "-o", "yaml").out)]
    agents.append(terminal.run("agent", "list", "-o", "json").json)
    shown = yaml.safe_load(terminal.run("capability", "get", "code.review", "-o", "yaml").out)
    leases_ms = [listed[0].pop("lease_ms") for listed in agents]

    assert agents[0] == agents[1]
    assert all(leases_ms)
    assert shown == terminal.run("capability", "get", "code.review", "-o", "json").json


def test_yaml_has_no_words_that_change_their_type(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"on": "off", "version": "1.10", "day": "2026-01-01", "none": "~", "cut": "\udcff", "answer": asdict}

    write_yaml(values)

    assert yaml.safe_load(capsys.readouterr().out) == values | {"cut": "?", "answer": str(asdict)}


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Both ends of a terminal that is stdin: where keys are pressed, and where they are read."""
    pressed, read = pty.openpty()
    with os.fdopen(read, closefd=False) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield pressed, read
    os.close(pressed)
    os.close(read)


async def _waiting(pressed: int, keys: bytes) -> str:
    with quit_key():
        os.write(pressed, keys)
        async with asyncio.timeout(0.5 if keys == b"x" else 10):
            await asyncio.Event().wait()
    return "never"


def test_q_is_ctrl_c_and_the_terminal_is_as_it_was(keyboard: tuple[int, int]) -> None:
    before = termios.tcgetattr(keyboard[1])

    with pytest.raises(KeyboardInterrupt):
        run_loop(_waiting(keyboard[0], b"q"))

    assert termios.tcgetattr(keyboard[1]) == before


def test_another_key_changes_nothing(keyboard: tuple[int, int]) -> None:
    with pytest.raises(TimeoutError):
        run_loop(_waiting(keyboard[0], b"x"))
