"""The passwords of a whole `coditect up` are in none of its lines, logs and argument lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from coditect.local import UpFolder, down, read_state
from coditect.local.watchdog import marked

AGENT = """
from coditect import Agent
agent = Agent("failing")


@agent.capability("fail.always", retry=1)
def fail(text: str) -> None:
    raise ValueError(text)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "failing.py").write_text(AGENT)
    yield tmp_path
    down(tmp_path / ".coditect")


def run(folder: Path, *arguments: str) -> str:
    """What a command prints, of every kind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}
    command = [sys.executable, "-m", "coditect", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_nothing_that_a_fleet_prints_logs_or_starts_shows_its_passwords(folder: Path) -> None:
    printed = [run(folder, "up", "--detach", "failing.py"), run(folder, "up", "--detach")]
    up = UpFolder(folder / ".coditect")
    secrets = json.loads(up.servers.read_text())
    state = read_state(up)
    assert state is not None
    arguments = [line for one in marked(state.marker) for line in one.cmdline()]
    arguments += psutil.Process(state.supervisor.pid).cmdline()
    assert any("failing.py" in one for one in arguments)

    for command in (
        ["doctor"],
        ["agent", "list"],
        ["task", "submit", "fail.always", '"x"'],
        ["topology", "apply", "--dry-run"],
    ):
        printed.append(run(folder, *command))
    printed.append(run(folder, "up", "--detach", "--output", "json"))
    printed.append(run(folder, "down", "--output", "json"))
    logged = [log.read_text(errors="replace") for log in up.log.iterdir() if log.name != "rabbitmq.log"]

    assert any("ValueError" in one for one in printed + logged)
    for name in ("password", "cookie"):
        secret = secrets[name]
        assert [one for one in (*printed, *logged, *arguments) if secret in one] == []
