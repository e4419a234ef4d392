"""Goals on real servers: the command and the agent are killed with -9 amid a goal, and go on with the same workflow."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coditect import Client
from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.support import eventually

pytestmark = pytest.mark.servers

GOALS = """
goals:
  - name: wait
    when: [wait]
    nodes:
      wait: {task: tool.wait, input: {$from: input.goal}}
"""
PROGRAM = """
import json, os, sys, time
goal = json.load(sys.stdin)
open(sys.argv[1], "a").write(goal + chr(10))
while not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
print(json.dumps("done: " + goal))
"""
GOAL = "Wait for it"


@pytest.fixture
async def fleet(own_servers: PrivateServers, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(own_servers, tmp_path) as opened:
        (tmp_path / "goals.yaml").write_text(GOALS)
        (tmp_path / "program.py").write_text(PROGRAM)
        command = f"{sys.executable} {tmp_path}/program.py {tmp_path}/began {tmp_path}/gate"
        await opened.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path}/ledger.db", "--shards", "2")
        await opened.run("coditect", "agent", "run", "--command", command, "--capability", "tool.wait")
        yield opened


async def command(fleet: Fleet) -> Process:
    words = ("workflow", "start", "--goal", GOAL, "--templates", str(fleet.folder / "goals.yaml"))
    arguments = (*words, "--idempotency-key", "it", "--output", "json")
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coditect", *arguments, env=fleet.environment(), stdout=PIPE, stderr=PIPE
    )


async def workflows(client: Client) -> list[str]:
    return [row.workflow async for row in client.workflows.list(name="goal")]


async def test_a_command_that_is_killed_and_called_again_goes_on_with_the_same_workflow(fleet: Fleet) -> None:
    first = await command(fleet)
    await eventually((fleet.folder / "began").exists, seconds=60)
    first.kill()
    await first.communicate()
    second = await command(fleet)
    (fleet.folder / "gate").touch()
    out, said = await second.communicate()
    async with client_of(fleet.servers) as client:
        known = await workflows(client)

    told = json.loads(out or said)
    assert (told["value"], told["failures"]) == (f"done: {GOAL}", [])
    assert known == [told["workflow"]]
    assert b"Planned" not in said, "it went on, and made no second plan"
    assert (fleet.folder / "began").read_text() == f"{GOAL}\n"
