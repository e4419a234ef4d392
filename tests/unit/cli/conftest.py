from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import Served, Terminal

FLOW = """
name: good
nodes:
  a: {task: code.review, input: {path: {$from: input.path}}}
  gate: {approval: Ship it?, after: [a]}
  b: {map: tests.run, over: results.a, limit: 3, after: [a, gate]}
"""


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """SIGINT as in a shell's foreground, also where the tests run in its background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that do not answer are not waited for."""
    monkeypatch.setattr("coditect.operations.locate.PING_ANSWER_SECONDS", 0.05)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def served(terminal: Terminal) -> Terminal:
    terminal.connections = Served()
    return terminal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(FLOW)
    return path


@pytest.fixture
def plane(terminal: Terminal) -> ScriptedPlane:
    return terminal.connections.plane


@pytest.fixture
def started(terminal: Terminal, file: Path, plane: ScriptedPlane) -> str:
    """A workflow that runs."""
    plane.at_once = False
    return terminal.run("workflow", "start", str(file), "--detach").out.strip()
