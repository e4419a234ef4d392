"""The project that `coditect init` writes passes its own test, and nothing is overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from coditect.cli.local.up import FILES
from coditect.errors import install_command
from tests.unit.cli.scene import Terminal


def test_project_passes_its_own_test_as_it_stands(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    written = terminal.run("init", "my-fleet")

    folder = tmp_path / "my-fleet"
    assert written.code == 0, written.err
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == set(FILES)
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    unset = ("CODITECT_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "arning" not in done.stdout + done.stderr


def test_project_has_the_name_of_its_folder_and_lists_its_fleet(terminal: Terminal, tmp_path: Path) -> None:
    folder = tmp_path / "my-fleet"

    terminal.run("init", str(folder))

    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-fleet"
    assert [(folder / file).is_file() for file in project["tool"]["coditect"]["fleet"]] == [True]
    readme = (folder / "README.md").read_text()
    assert readme.startswith("# my-fleet\n")
    assert install_command("dispatcher,dev") in readme


@pytest.mark.parametrize("name", ["My Fleet", "1st", "-x"])
def test_name_that_no_project_can_have_is_refused(terminal: Terminal, tmp_path: Path, name: str) -> None:
    refused = terminal.run("init", str(tmp_path / name))

    assert refused.code == 2
    assert "coditect init my-fleet" in refused.err
    assert not (tmp_path / name).exists()


def test_folder_with_something_in_it_is_left_alone(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "mine.txt").write_text("mine")

    refused = terminal.run("init", str(tmp_path / "fleet"))

    assert refused.code == 2
    assert [file.name for file in (tmp_path / "fleet").iterdir()] == ["mine.txt"]
