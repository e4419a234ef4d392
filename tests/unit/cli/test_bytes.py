"""Bytes on the command line: a body that is no JSON, and a value that JSON cannot say."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.cli.task import outcome_json
from coditect.cli.terminal.options import read_body
from coditect.errors import InvalidTask
from coditect.model.result import Outcome, Status


def test_body_is_bytes_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "photo"
    file.write_bytes(b"\xff\x00")

    assert read_body(f"@{file}", binary=True) == b"\xff\x00"
    with pytest.raises(InvalidTask):
        read_body(f"@{file}")


def test_value_of_bytes_is_base64_in_json() -> None:
    told = outcome_json("task", Outcome(Status.COMPLETED, b"\xff\x00", "task", None, binary=True))

    assert (told["value"], told["value_base64"]) == (None, "/wA=")
