"""The logs of several programs on one terminal."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coditect.cli.terminal.logs import Logs


@pytest.fixture
def written() -> StringIO:
    return StringIO()


def follow(folder: Path, written: StringIO, *names: str, **console: Any) -> Logs:
    logs = Logs(folder, Console(file=written, **{"width": 40} | console))
    logs.follow(names)
    return logs


def say(folder: Path, name: str, text: str) -> None:
    with (folder / f"{name}.log").open("a", encoding="utf-8") as log:
        log.write(text)


def test_each_line_has_the_name_of_its_program_and_older_ones_are_left_out(tmp_path: Path, written: StringIO) -> None:
    say(tmp_path, "greeter", "yesterday\n")
    logs = follow(tmp_path, written, "greeter", "dispatcher")

    say(tmp_path, "greeter", "one\ntwo\n")
    say(tmp_path, "dispatcher", "three\n")
    logs.show()

    assert written.getvalue() == "greeter    | one\ngreeter    | two\ndispatcher | three\n"


def test_each_program_has_a_color_of_its_own(tmp_path: Path, written: StringIO) -> None:
    colored = {"force_terminal": True, "color_system": "standard", "no_color": False}
    logs = follow(tmp_path, written, "greeter", "dispatcher", **colored)

    say(tmp_path, "greeter", "one\n")
    say(tmp_path, "dispatcher", "two\n")
    logs.show()

    assert re.findall(r"\x1b\[(\d+)m(\w+)", written.getvalue()) == [("36", "greeter"), ("32", "dispatcher")]


def line(level: str, event: str, logger: str = "coditect.agent", **more: object) -> str:
    fields = {"timestamp": "2026-01-01T12:00:00.000+00:00", "level": level, "event": event, "logger": logger}
    return json.dumps(fields | more) + "\n"


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def shown(written: StringIO) -> str:
    """The text on the terminal, without colors."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", written.getvalue())


def test_terminal_shows_the_author_s_lines_and_errors_and_no_routine(tmp_path: Path, written: StringIO) -> None:
    logs = follow(tmp_path, written, "greeter", force_terminal=True, width=200)

    say(tmp_path, "greeter", line("info", "Connected to the broker") + line("info", "A shard is open", "dispatcher"))
    say(tmp_path, "greeter", "printed by the author\n" + line("info", "logged by the author", "greeter"))
    say(tmp_path, "greeter", line("error", "A task failed", error="ValueError: no", traceback="Traceback:\n  f()\nno"))
    logs.show()

    text = shown(written)
    assert "Connected" not in text
    assert "A shard" not in text
    assert "greeter | printed by the author\n" in text
    assert "info    logged by the author\n" in text
    assert "error   A task failed error=ValueError: no\n" in text
    assert "greeter |   f()\n" in text
    assert '"event"' not in text


def test_last_error_stays_below_later_lines_until_its_program_is_ready(tmp_path: Path, written: StringIO) -> None:
    logs = follow(tmp_path, written, "greeter", "other", force_terminal=True, width=200)

    with logs.shown():
        say(tmp_path, "greeter", "Traceback (most recent call last):\n  File 'greeter.py'\nNameError: nam\n")
        say(tmp_path, "other", "a line of another program\n" * 50)
        say(tmp_path, "greeter", "Error: The agent cannot be imported.\n  reason: NameError: nam\n")
        until(lambda: shown(written).count("a line of another program") == 50)
        until(lambda: "Last error of greeter: Error: The agent cannot be imported." in shown(written))
        say(tmp_path, "greeter", "Traceback (most recent call last):\n  File 'greeter.py'\nNameError: nam\n")
        until(lambda: shown(written).count("greeter | NameError: nam") == 2)
        logs.say("the command's own line")
        until(lambda: "Last error of greeter: NameError: nam" in shown(written).rpartition("own line")[2])

        say(tmp_path, "greeter", line("info", "The agent is ready"))

        def is_cleared() -> bool:
            logs.say("later")
            return "Last error" not in shown(written).rpartition("later")[2]

        until(is_cleared)


def test_line_is_shown_once_it_has_its_end_and_never_broken(tmp_path: Path, written: StringIO) -> None:
    logs = follow(tmp_path, written, "greeter")

    say(tmp_path, "greeter", "a long line " * 10)
    logs.show()
    assert written.getvalue() == ""
    say(tmp_path, "greeter", "ends\n")
    logs.show()

    assert written.getvalue() == "greeter | " + "a long line " * 10 + "ends\n"


def test_log_that_begins_anew_is_read_from_its_start(tmp_path: Path, written: StringIO) -> None:
    say(tmp_path, "greeter", "before it was put aside\n")
    logs = follow(tmp_path, written, "greeter")

    (tmp_path / "greeter.log").write_text("new\n")
    logs.show()

    assert written.getvalue() == "greeter | new\n"


def test_what_was_said_last_is_shown_too(tmp_path: Path, written: StringIO) -> None:
    logs = follow(tmp_path, written, "greeter")

    with logs.shown():
        say(tmp_path, "greeter", "goodbye\n")

    assert written.getvalue() == "greeter | goodbye\n"
