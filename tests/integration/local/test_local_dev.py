"""`coditect up --watch`: a project that `coditect init` wrote answers, is changed, and answers otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coditect.local import UpFolder, down, read_state
from coditect.local.watchdog import marked

pytestmark = pytest.mark.servers
SLOW_SECONDS = 90.0


def until(condition: Callable[[], object], *, log: Path) -> None:
    deadline = time.monotonic() + SLOW_SECONDS
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.fixture
def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}


@pytest.fixture
def project(tmp_path: Path, environment: dict[str, str]) -> Iterator[Path]:
    folder = tmp_path / "my-fleet"
    subprocess.run([sys.executable, "-m", "coditect", "init", str(folder)], env=environment, check=True)
    yield folder
    down(folder / ".coditect")


def test_project_answers_and_runs_what_is_changed(project: Path, environment: dict[str, str], tmp_path: Path) -> None:
    log, coditect = tmp_path / "dev.log", [sys.executable, "-m", "coditect"]

    def greets(text: str) -> bool:
        words = [*coditect, "task", "submit", "hello.greet", '"Ada"', "--wait", "20s"]
        done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)
        return text in done.stdout

    with log.open("w") as output:
        dev = subprocess.Popen(
            [*coditect, "up", "--watch", "greeter.py"], cwd=project, env=environment, stdout=output, stderr=output
        )
        until(lambda: "Ready. A change" in log.read_text(), log=log)
        state = read_state(UpFolder(project / ".coditect"))
        assert greets("Hello, Ada!")

        greeter = project / "greeter.py"
        greeter.write_text(greeter.read_text().replace("Hello, {name}!", "Good evening, {name}!"))
        until(lambda: greets("Good evening, Ada!"), log=log)

        dev.send_signal(signal.SIGINT)
        assert dev.wait(SLOW_SECONDS) == 0, log.read_text()

    told = log.read_text()
    assert "greeter    | " in told  # one process, where the project's own fleet has two
    assert "dispatcher | " in told
    assert state is not None
    assert marked(state.marker) == []
