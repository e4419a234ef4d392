"""How a process ended, as the nemesis reads it from the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.local.child import last_lines
from dispatcher.chaos.nemesis import gives_reason

RECORD = '{"level": "error", "message": "The agent cannot run", "reason": "| no broker"}'


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([RECORD], True),
        (["Traceback (most recent call last):", '  File "x.py", line 1', "RuntimeError: the handler is closed"], False),
        ([RECORD, "Fatal Python error: Segmentation fault"], False),
        ([], True),
    ],
    ids=["a record", "a traceback", "the interpreter", "silent"],
)
def test_process_that_ends_by_itself_gives_its_reason_in_a_record(
    tmp_path: Path, lines: list[str], reason: bool
) -> None:
    log = tmp_path / "agent.log"
    log.write_text("".join(f"{line}\n" for line in lines))

    assert gives_reason(last_lines(log)) is reason
