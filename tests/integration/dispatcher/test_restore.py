"""A ledger that is backed up under load and restored after a kill, by the commands a person would use."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from coditect import Workflow
from coditect.errors import NotFound
from coditect.local import PrivateServers
from coditect.workflow.states import WorkflowState
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.timeout(240)]

NODES = 12
RUNS = 8
SECONDS = 60.0


def chain() -> Workflow:
    flow = Workflow("chain")
    before = flow.task("work.do", 200, name="n0")
    for number in range(1, NODES):
        before = flow.task("work.do", 200, name=f"n{number}", after=[before])
    return flow


async def command(fleet: Fleet, *arguments: str) -> str:
    """What `coditect dispatcher backup` or `restore` says."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "coditect", "dispatcher", *arguments],
        env=fleet.environment(CODITECT_STORE_URL=f"sqlite:{fleet.folder / 'ledger.db'}"),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0 or "Another process owns" in done.stderr, done.stderr
    return done.stdout + done.stderr


async def test_workflows_of_a_restored_backup_end_once_each(own_servers: PrivateServers, tmp_path: Path) -> None:
    store, copy = f"sqlite:{tmp_path / 'ledger.db'}", tmp_path / "copy.db"
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.start()
        dispatcher = await fleet.run("dispatcher", CODITECT_STORE_URL=store, CODITECT_SHARDS="4")
        runs = [await client.start(chain()) for _ in range(RUNS)]
        await eventually(lambda: len(fleet.noted("end")) > RUNS, seconds=SECONDS)

        assert "was copied" in await command(fleet, "backup", str(copy))
        assert "Another process owns the store" in await command(fleet, "restore", str(copy))
        abandoned = len(fleet.noted("end"))
        later = await client.start(chain())
        await eventually(lambda: len(fleet.noted("end")) > abandoned + RUNS, seconds=SECONDS)
        dispatcher.kill()
        await asyncio.to_thread(dispatcher.wait)
        assert "What it was before is in" in await command(fleet, "restore", str(copy))
        await fleet.run("dispatcher", CODITECT_STORE_URL=store, CODITECT_SHARDS="4")

        assert {await run.wait(timeout=SECONDS) for run in runs} == {WorkflowState.COMPLETED}
        for run in runs:
            ends = Counter([row.node async for row in run.attempts() if row.status == "completed"])
            assert (len(ends), set(ends.values())) == (NODES, {1})
        with pytest.raises(NotFound):
            await later.state()
