"""A command agent on real servers is killed with -9: nothing of its command is left, and another does the task."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.support import eventually, whole_lines

pytestmark = pytest.mark.servers

MARK = "600.375"
PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
first = not os.path.exists(sys.argv[1])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "600.375"])
    os._exit(0)
open(sys.argv[1], "a").write(os.getcwd() + chr(10))
if first:
    time.sleep(600)
print(1)
"""


@pytest.fixture
async def fleet(own_servers: PrivateServers, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(own_servers, tmp_path) as opened:
        yield opened


def sleepers() -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if MARK in (one.info["cmdline"] or [])]


async def test_a_killed_agent_leaves_no_process_and_another_does_its_task(fleet: Fleet, tmp_path: Path) -> None:
    program, began = tmp_path / "program.py", tmp_path / "began"
    program.write_text(PROGRAM)
    command = f"{sys.executable} {program} {began}"
    arguments = ("coditect", "agent", "run", "--command", command, "--capability", "tool.run")
    async with client_of(fleet.servers) as client:
        victim = await fleet.run(*arguments, CODITECT_WORKSPACE=str(tmp_path))
        handle = await client.submit("tool.run", {"n": 1})
        await eventually(lambda: whole_lines(began) and len(sleepers()) == 1)
        (folder,) = whole_lines(began)

        victim.kill()
        await eventually(lambda: sleepers() == [])
        await fleet.run(*arguments, CODITECT_WORKSPACE=str(tmp_path))

        assert await handle.result(timeout="60s") == 1
        assert sleepers() == []
        assert not Path(folder).exists(), "the next agent removes what the killed one left"
