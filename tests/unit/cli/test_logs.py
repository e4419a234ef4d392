"""The logs of several programs on one terminal."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from coditect.cli.terminal.logs import Logs


@pytest.fixture
def written() -> StringIO:
    return StringIO()


def follow(folder: Path, written: StringIO, *names: str) -> Logs:
    logs = Logs(folder, Console(file=written, width=40))
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
    logs = Logs(tmp_path, Console(file=written, force_terminal=True, color_system="standard", no_color=False))
    logs.follow(["greeter", "dispatcher"])

    say(tmp_path, "greeter", "one\n")
    say(tmp_path, "dispatcher", "two\n")
    logs.show()

    assert re.findall(r"\x1b\[(\d+)m(\w+)", written.getvalue()) == [("36", "greeter"), ("32", "dispatcher")]


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
