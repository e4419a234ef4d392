"""A task's progress as a person sees it: a bar on a terminal, whatever a stranger's event holds."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.cli.terminal.output import say
from coditect.cli.terminal.progress import shown_events, shown_progress, told
from tests.control_plane import workflow_row
from tests.unit.cli.scene import Screen, happening


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")

    with shown_events() as show:
        show(happening("task.started", "task-1", agent="reviewer-1", attempt=1))
        show(happening("task.progress", "task-1", share=0.25, note="linting\x1b[2J"))

    drawn = screen.getvalue()
    assert "task.started  agent reviewer-1, attempt 1" in drawn
    assert "━━━━━━━━━━" in drawn
    assert "25%" in drawn
    assert "linting\\x1b[2J" in drawn


def lines_of(output: str) -> list[str]:
    """What a terminal shows after this output: text, returns, and the sequences by which rich moves and erases."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        match part:
            case "\r":
                column = 0
            case "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            case _ if part.startswith("\x1b["):
                number = int(re.sub(r"[^0-9]", "", part.split(";")[0]) or 1)
                row -= number if part.endswith("A") else 0
                lines[row] = "" if part.endswith("K") else lines[row]
            case text:
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                column += len(text)
    return [line.rstrip() for line in lines]


def test_line_that_is_said_while_progress_is_drawn_stays_whole_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    row = workflow_row("running", name="release", counts={"working": 2}, total=2)
    terminal, program = os.openpty()

    with os.fdopen(program, "w", encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with shown_progress() as show:
            show(row)
            say("gate waits for an answer: Ship it?")
            say("  coditect approval grant 01890a5d-ac96-774b-bcce-b302099a8057:gate")
            show(row)
    drawn = bytearray()
    with suppress(OSError):  # which is how Linux tells the end
        while part := os.read(terminal, 100_000):
            drawn += part
    os.close(terminal)

    assert [line for line in lines_of(drawn.decode()) if line] == [
        "gate waits for an answer: Ship it?",
        "  coditect approval grant 01890a5d-ac96-774b-bcce-b302099a8057:gate",
    ]


values = st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@given(share=values, note=values)
def test_whatever_an_event_holds_is_a_printable_line(share: Any, note: Any) -> None:
    line = told(happening("task.progress", "task-1", share=share, note=note))

    assert "%" in line
    assert line.replace("\n", "").isprintable()
