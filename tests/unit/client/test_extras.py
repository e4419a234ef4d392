"""What a client and an agent run without, and what is said where an extra is missing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from coditect.errors import install_command

ROOT = Path(__file__).parents[3]
OPTIONAL = {"rq": "rq", "fdb": "foundationdb", "jmespath": "jmespath", "yaml": "pyyaml"}
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}, None))\n"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it where nothing optional is installed."""
    words = [sys.executable, "-c", BLOCKED + program, *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)


def test_what_only_the_control_plane_needs_is_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = " ".join(project["dependencies"])
    extras = project["optional-dependencies"]

    assert not any(name in always for name in OPTIONAL.values())
    brought = " ".join(extras["dispatcher"])
    assert {name for name in OPTIONAL.values() if name in brought} == set(OPTIONAL.values()) - {"foundationdb"}
    assert {"workflow", "fdb"} <= extras.keys()


WHOLE = """
import asyncio
from coditect import Agent, Client, From, Options, Priority, Retry, WorkflowRun, SyncClient, Workflow
from coditect.agent import program
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import capability_queues
from coditect.errors import ControlPlaneRequired
from coditect.registry.redis import RedisRegistry

async def main():
    agent = Agent("echo")
    agent.capability("echo.say")(lambda task: task)
    flow = Workflow("two")
    first = flow.task("echo.say", 1)
    flow.task("echo.say", From("results.first.x"), after=[first], when="input.yes")
    async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
        await broker.declare(capability_queues("echo.say"))
        await client.submit("echo.say", 1, priority="p0")
        try:
            await client.start(flow)
        except ControlPlaneRequired:
            print("done")

asyncio.run(main())
"""


def test_a_client_and_an_agent_need_none_of_them() -> None:
    ran = run(WHOLE)

    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("dispatcher", "run"), "dispatcher"),
        (("workflow", "check", "examples/none.yaml"), "workflow"),
    ],
)
def test_a_command_that_needs_an_extra_names_it(words: tuple[str, ...], extra: str) -> None:
    ran = run("from coditect.cli.main import main; main()", *words)

    assert ran.returncode == 1
    assert install_command(extra) in ran.stderr
    assert "Traceback" not in ran.stderr


HELP = """
from coditect.cli.main import main
for words in ("--help", "task submit --help", "agent --help", "up --help"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as ended:
        print(words, "ended with", ended.code or 0)
"""


def test_help_needs_none_of_them() -> None:
    assert run(HELP).stdout.count("ended with 0") == 4


EXTRAS = {
    "coditect.workflow.documents.file": "workflow",
    "coditect.workflow.expressions": "workflow",
    "dispatcher": "dispatcher",
    "dispatcher.store.sqlite": "dispatcher",
}
IMPORTS = """
from importlib import import_module
for module in sys.argv[1:]:
    try:
        import_module(module)
    except Exception as error:
        print(module, *str(error).split())
"""


def test_an_import_names_the_extra() -> None:
    lines = run(IMPORTS, *EXTRAS).stdout.splitlines()

    said = {module: line for line in lines for module in EXTRAS if line.startswith(f"{module} ")}
    assert said.keys() == EXTRAS.keys()
    assert [module for module, extra in EXTRAS.items() if install_command(extra) not in said[module]] == []
