"""The set-up of a fresh clone: who installs what, read from the Makefile without running it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def planned(target: str, folder: Path = ROOT) -> str:
    words = ["make", "--dry-run", "--directory", str(folder), target]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_make_alone_lists_at_most_fifteen_targets_in_three_groups() -> None:
    shown = subprocess.run(["make", "--directory", str(ROOT)], capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^  make ([a-z-]+) +\S.*", shown, re.MULTILINE)

    assert len(re.findall(r"^\w[\w ]+:$", shown, re.MULTILINE)) == 3
    assert len(targets) == shown.count("  make ") <= 15
    assert {"demo", "check", "test"} < set(targets)


def test_setup_installs_the_programs_that_the_documentation_runs() -> None:
    assert "install-servers.sh amqp-tools curl" in planned("tools")
    assert "tools" in next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("setup:"))


def test_demo_of_a_fresh_clone_installs_what_it_runs_and_a_developer_s_takes_what_is_there(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/demo.lock", "requirements/dev.lock", "requirements/runtime.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "create-venv.sh").touch()

    fresh = planned("demo", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".locked").touch()
    (tmp_path / ".venv" / "bin").mkdir()
    (tmp_path / ".venv" / "bin" / "python").touch()
    developers = planned("demo", tmp_path)

    assert ".venv-demo requirements/demo.lock" in fresh
    assert ".venv/bin/python -m agents.demo" in developers
    assert "create-venv.sh" not in developers


def test_demo_has_the_versions_that_the_tests_have() -> None:
    demo, tested = (
        set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements/demo.lock", "requirements/dev.lock")
    )

    assert demo < tested
    assert len(demo) < len(tested) / 2
