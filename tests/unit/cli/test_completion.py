"""What the shell completes: commands, options, and values that the fleet knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coditect.cli.main import app
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import AGENT, Terminal


def completed(terminal: Terminal, line: str) -> list[str]:
    """What bash offers for the last word of the line."""
    words = line.split(" ")
    environ = {"_CODITECT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], obj=terminal.connections, env=environ, prog_name="coditect")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split()


def test_commands_and_options_are_completed(terminal: Terminal) -> None:
    assert completed(terminal, "coditect agent li") == ["list"]
    assert completed(terminal, "coditect agent list --wat") == ["--watch"]
    assert completed(terminal, "coditect agent list --output ") == ["table", "json", "yaml"]


@pytest.mark.parametrize("line", ["capability get ", "task submit ", "agent list --capability ", "dead list -c co"])
def test_capabilities_of_living_agents_are_completed(terminal: Terminal, line: str) -> None:
    terminal.register()

    assert completed(terminal, f"coditect {line}") == ["code.review"]


@pytest.mark.parametrize("line", ["agent get ", "agent drain rev", "agent log-level all debug --agent "])
def test_living_agents_are_completed(terminal: Terminal, line: str) -> None:
    terminal.register()

    assert completed(terminal, f"coditect {line}") == [AGENT]


def test_workflows_and_durable_tasks_are_completed(terminal: Terminal, started: str, plane: ScriptedPlane) -> None:
    ran = terminal.run("task", "submit", "code.review", "{}", "--detach")
    task_id = ran.out.strip()

    assert started in completed(terminal, "coditect workflow get ")
    assert completed(terminal, f"coditect workflow cancel {started}") == [started]
    assert completed(terminal, "coditect task get ") == [task_id]
    assert completed(terminal, "coditect task get nothing-like-it") == []


@pytest.mark.parametrize("line", ["capability get ", "workflow get "])
def test_without_a_fleet_nothing_is_completed_and_nothing_is_said(tmp_path: Path, line: str) -> None:
    words = f"coditect {line}"
    environ = {
        "_CODITECT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "CODITECT_AMQP_URL": "amqp://127.0.0.1:1/",
        "CODITECT_REDIS_URL": "redis://127.0.0.1:1/0",
        "PATH": "",
    }
    program = str(Path(sys.executable).with_name("coditect"))

    done = subprocess.run([program], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_installed(
    terminal: Terminal, tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")

    program = str(Path(sys.executable).with_name("coditect"))
    installed = subprocess.run([program, "--install-completion", shell], capture_output=True, text=True, check=False)

    assert installed.returncode == 0
    (script,) = (path for path in tmp_path.rglob("*") if path.is_file() and "coditect" in path.name)
    assert "_CODITECT_COMPLETE" in script.read_text()
