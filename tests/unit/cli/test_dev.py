"""What `coditect up --watch` refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect import local
from coditect.cli.local import up
from coditect.errors import install_command
from tests.unit.cli.scene import Terminal


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "up", lambda *_, **__: pytest.fail("something was started"))
    return tmp_path


def test_without_an_agent_it_says_how_to_name_one(terminal: Terminal) -> None:
    refused = terminal.run("up", "--watch")

    assert refused.code == 2
    assert "coditect up --watch my_agent.py" in refused.err


def test_mistake_in_a_file_is_told_with_its_line(terminal: Terminal, folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\nnothing_of_this_name\n")

    refused = terminal.run("up", "--watch", "broken.py")

    assert refused.code != 0
    assert "broken.py:2" in refused.err


def test_without_its_extra_it_names_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "find_spec", lambda name: None)

    refused = terminal.run("up", "--watch", "agent.py")

    assert install_command("dev") in refused.err
