"""A LangGraph graph whose process is killed goes on in another one, and its tasks are done once."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, open_fleet
from tests.servers import ROOT
from tests.support import eventually, whole_lines

pytestmark = pytest.mark.servers

HERE = Path(__file__).parent


@asynccontextmanager
async def graph(fleet: Fleet, *arguments: str) -> AsyncIterator[Process]:
    """A process that runs the graph; killed at the end of the block, wherever it is."""
    program = str(HERE / "graph_process.py")
    environment = fleet.environment(PYTHONPATH=str(ROOT))
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, *arguments, env=environment, stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def told(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    found: dict[str, Any] = json.loads(line)
    return found


@asynccontextmanager
async def counting_fleet(servers: PrivateServers, folder: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(servers, folder) as fleet:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{folder / 'ledger.db'}")
        await fleet.start(target=str(HERE / "slow_counter.py"), COUNTER_FOLDER=str(folder))
        yield fleet


@pytest.mark.parametrize(("first", "second"), [("blocking", "async"), ("async", "blocking")])
async def test_a_paused_graph_whose_process_is_killed_is_resumed_by_another_process(
    own_servers: PrivateServers, tmp_path: Path, first: str, second: str
) -> None:
    (tmp_path / "may-end").touch()
    async with counting_fleet(own_servers, tmp_path) as fleet:
        async with graph(fleet, first, "a", '{"text": "hello"}') as process:
            paused = await told(process)
        async with graph(fleet, second, "a", '{"resume": "granted"}') as process:
            ended = await told(process)

    assert paused == {"text": "hello", "length": 5, "paused": [{"length": 5}]}
    assert ended == {"text": "hello", "length": 5, "verdict": "granted", "paused": []}
    assert whole_lines(tmp_path / "calls") == ["call"]


async def test_a_graph_killed_amid_a_task_waits_elsewhere_for_the_same_task(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with counting_fleet(own_servers, tmp_path) as fleet:
        async with graph(fleet, "blocking", "a", '{"text": "hello"}'):
            await eventually((tmp_path / "calls").exists, seconds=60)
        (tmp_path / "may-end").touch()
        async with graph(fleet, "blocking", "a") as process:
            paused = await told(process)

    assert paused["length"] == 5
    assert whole_lines(tmp_path / "calls") == ["call"]
