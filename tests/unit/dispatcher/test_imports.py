"""The modules that every dispatcher loads, whose memory and start-up time every dispatcher pays."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.shards import verbs
from tests.servers import ROOT

NOT_FOR_ALL = {
    "pydantic": "only a submission needs it, and a submission's transaction runs beside the event loop",
    "psutil": "an agent's",
    "rich": "the command line's",
    "typer": "the command line's",
    "fdb": "only a dispatcher on FoundationDB needs it",
    "yaml": "a workflow file's",
    "dispatcher.chaos": "it breaks fleets on purpose, and is not in the wheel",
    "coditect.client": "a user's",
    "coditect.codec": "a client's and an agent's",
    "cronsim": "only a schedule needs it",
    "zoneinfo": "only a schedule needs it",
    **dict.fromkeys(verbs.COORDINATION.values(), "only a fleet that uses it needs it"),
}

READ_THE_ENVIRONMENT = {
    "coditect/aio/ready.py": "where to say that the program is ready",
    "coditect/settings/settings.py": "the settings, which are documented",
}
READ_IT_TOO = {
    "dispatcher.program": {
        "dispatcher/program.py": "whether `dispatcher.recorder` records a history or strikes at a failpoint"
    },
    "coditect.agent.program": {
        "coditect/aio/launch.py": "the name by which `coditect up` finds the program again",
        "coditect/agent/program.py": "the process that started it, with which it ends",
        "coditect/agent/processes/copies.py": "what the processes that it starts are given",
    },
}
ALONE = "import sys; sys.modules['opentelemetry'] = None; import {}"
"""redis-py loads OpenTelemetry wherever that is installed, and OpenTelemetry loads psutil."""


def names(file: Path) -> set[str]:
    """All names and attributes in a module."""
    nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return imported | attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


def test_start_of_a_dispatcher_loads_nothing_that_only_some_work_needs() -> None:
    script = f"{ALONE.format('dispatcher.program')}; print(*sorted(set({sorted(NOT_FOR_ALL)}) & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stderr, {name: NOT_FOR_ALL[name] for name in done.stdout.split()}) == ("", {})


@pytest.mark.parametrize("program", READ_IT_TOO)
def test_no_other_module_that_a_program_loads_at_its_start_reads_the_environment_to_switch_a_promise_off(
    program: str,
) -> None:
    files = "(getattr(one, '__file__', None) or '' for one in sys.modules.values())"
    script = f"{ALONE.format(program)}; print(*{files}, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in done.stdout.splitlines() if line.endswith(".py")}

    package = ROOT.joinpath(*program.removesuffix(".program").split("."))
    later = {path for path in package.rglob("*.py") if "chaos" not in path.parts}
    own = {path for path in loaded | later if path.is_relative_to(ROOT) and ".venv" not in path.parts}
    reading = {str(path.relative_to(ROOT)) for path in own if names(path) & {"environ", "environb", "getenv"}}

    assert len(own) > 200
    assert reading == {*READ_THE_ENVIRONMENT, *READ_IT_TOO[program]}
