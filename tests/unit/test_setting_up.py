"""A fresh clone: who installs what, read from the Makefile without running it, and what setting up and testing say."""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

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


def install(terminal: int | None = None) -> str:
    """Return what `create-venv.sh` says when pip fetches 21 packages of 22, to a terminal if there is one."""
    fetched = "".join(f"Collecting package-{number}\\n" for number in range(21))
    script = f"""
source <(sed -n '/^show_progress()/,/^}}/p' scripts/create-venv.sh)
printf 'Ignoring absent: markers do not match\\n{fetched}Successfully installed\\n' | show_progress 22
"""
    to = subprocess.PIPE if terminal is None else terminal
    return subprocess.run(["bash", "-euc", script], cwd=ROOT, stdout=to, text=True, check=True).stdout


def test_setup_shows_its_progress_in_a_log_and_on_a_terminal() -> None:
    user, terminal = pty.openpty()

    in_a_log = install()
    install(terminal)
    on_a_terminal = os.read(user, 10_000).decode()
    for end in (user, terminal):
        os.close(end)

    assert in_a_log == "  10 of 21: package-9\n  20 of 21: package-19\n"
    assert re.findall(r"\r  (\d+) of 21: package-\d+", on_a_terminal) == [str(number) for number in range(1, 22)]


def test_make_test_says_at_its_end_what_it_skipped_and_why(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request.config, "args_source", pytest.Config.ArgsSource.TESTPATHS)
    monkeypatch.delenv("CODITECT_IMAGE", raising=False)
    screen = io.StringIO()
    reporter = TerminalReporter(request.config, screen)
    for reason in ("there is no Chromium", "there is no git", "there is no git"):
        skipped = ("test_file.py", 7, f"Skipped: {reason}")
        report = pytest.TestReport("test", ("test_file.py", 7, "test"), {}, "skipped", skipped, "setup")
        reporter.stats.setdefault("skipped", []).append(report)

    [run] = re.findall(r"-m pytest (.*)", planned("test"))
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert conftest is not None
    conftest.pytest_terminal_summary(reporter)

    assert not re.search(r"\btests\b", run), "the whole of it"
    title, *lines = screen.getvalue().strip().splitlines()
    assert "skipped, and why" in title
    assert lines[:2] == ["   2  there is no git", "   1  there is no Chromium"]
    assert " all  of tests/deploy/test_image.py: `make image` runs them" in lines
