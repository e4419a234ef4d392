"""A task's progress as a person sees it: a bar on a terminal, whatever a stranger's event holds."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.cli.terminal.progress import shown_events, told
from tests.unit.cli.scene import happening


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


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


values = st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@given(share=values, note=values)
def test_whatever_an_event_holds_is_a_printable_line(share: Any, note: Any) -> None:
    line = told(happening("task.progress", "task-1", share=share, note=note))

    assert "%" in line
    assert line.replace("\n", "").isprintable()
