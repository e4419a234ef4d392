"""Whatever a command is given, it answers, or prints what is wrong and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from coditect.cli.terminal.options import read_body
from coditect.errors import InputError
from coditect.operations import locate
from tests.unit.cli.scene import EVERY, Terminal

STARTS_PROGRAMS = {
    ("up",), ("down",), ("doctor",), ("load",), ("dispatcher", "run"), ("agent", "run"),
    ("api",), ("api", "mcp"), ("top",),
}  # fmt: skip
GARBAGE = (
    "", " ", "-", "--", "-1", "0", "1e999", "nan", "{", "[1", "null", "{}", "[" * 2_000, "9" * 400 + "d", "p9", "P0",
    "5m", "-5m", "code.review", "code..review", "w:task", ":task", "task-1", "a b", "*.#", "\x00", "\x1b[31m", "\udcff",
    "\u00fc" * 300, "@", "@/", "@/nowhere", "/nowhere.yaml", "01890a5d-ac96-774b-bcce-b302099a8057", "--nope", "x=1",
)  # fmt: skip


COMMANDS = {words: command for words, command in EVERY.items() if words not in STARTS_PROGRAMS}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locate, "PING_ANSWER_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
