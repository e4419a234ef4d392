"""The dispatcher as a program: begun by the command line, ended by a signal or by its store."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from coditect import Workflow
from coditect.local import PrivateServers
from coditect.operations.status import cluster_status
from coditect.workflow.states import WorkflowState
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.programs import Program

pytestmark = pytest.mark.servers

SHARDS = 2
LEDGER = "ledger.db"
END_SECONDS = 20.0


async def run(fleet: Fleet) -> Program:
    store = f"sqlite:{fleet.folder / LEDGER}"
    return await fleet.run("coditect", "dispatcher", "run", "--store", store, "--shards", str(SHARDS))


async def test_command_takes_the_shards_finishes_a_workflow_and_ends_on_sigterm(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    flow = Workflow("two")
    flow.task("work.do", 10, name="last", after=[flow.task("work.do", 10, name="first")])
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.start()
        process = await run(fleet)
        (owner,) = {one.owner for one in (await cluster_status(client._broker)).shards}
        assert owner is not None

        state = await (await client.start(flow)).wait(timeout=60)
        process.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(process.wait, END_SECONDS) == 0
        assert owner.startswith(f"dispatcher-{process.pid}-")
        assert state is WorkflowState.COMPLETED


async def test_store_that_fails_for_good_ends_the_program_with_a_message_and_exit_code_1(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet:
        process = await run(fleet)
        full_bytes = (tmp_path / f"{LEDGER}-wal").stat().st_size  # what it writes next is refused, its log is smaller

        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (full_bytes, full_bytes))

        assert await asyncio.to_thread(process.wait, END_SECONDS) == 1
        (said,) = [line for line in fleet.log(process).splitlines() if "The dispatcher cannot run" in line]
        assert LEDGER in said
