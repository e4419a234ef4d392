"""Whatever a command is given, it answers, or prints what is wrong and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from typer.main import get_command

from coditect.cli import main
from coditect.cli.terminal.body import read_body
from coditect.errors import InputError
from coditect.operations.diagnosis import question
from tests.unit.cli.scene import Terminal

STARTS_PROGRAMS = {
    ("up",), ("dev",), ("down",), ("doctor",), ("chaos",), ("load",), ("dispatcher", "run"), ("agent", "run"),
    ("api", "run"), ("mcp", "serve"), ("top",),
}  # fmt: skip
GARBAGE = (
    "", " ", "-", "--", "-1", "0", "1e999", "nan", "{", "[1", "null", "{}", "[" * 2_000, "9" * 400 + "d", "p9", "P0",
    "5m", "-5m", "code.review", "code..review", "w:task", ":task", "task-1", "a b", "*.#", "\x00", "\x1b[31m", "\udcff",
    "\u00fc" * 300, "@", "@/", "@/nowhere", "/nowhere.yaml", "01890a5d-ac96-774b-bcce-b302099a8057", "--nope", "x=1",
)  # fmt: skip


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that ends by itself."""
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if hasattr(found, "list_commands"):
            yield from commands(found, (*words, name))
        elif (*words, name) not in STARTS_PROGRAMS:
            yield (*words, name), found


COMMANDS = dict(commands(get_command(main.app)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(question, "ANSWER_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_garbage_is_answered_with_a_sentence(words: tuple[str, ...], data: some.DataObject) -> None:
    options = [one.opts[0] for one in COMMANDS[words].params if one.param_type_name == "option" and one.name != "watch"]
    given_options = data.draw(some.lists(some.sampled_from(options), max_size=2)) if options else []
    line = [*words, *data.draw(some.lists(some.sampled_from(GARBAGE), max_size=3))]
    for option in given_options:
        line += [option, data.draw(some.sampled_from(GARBAGE))]

    ran = Terminal().run(*line)  # raises what would be a traceback

    assert ran.code in range(5)
    assert ran.code == 0 or ran.err.strip()
    assert "Traceback" not in ran.err
    assert "\x1b[31m" not in ran.out + ran.err


@pytest.mark.parametrize("text", ["\udcff", "{\udcff}", "@\udcff", "@\x00", "@" + "a" * 5_000, "@/"])
def test_body_that_is_no_text_and_no_file_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_body(text)
