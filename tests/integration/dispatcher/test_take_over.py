"""Dispatchers that are asked to end, killed, or stopped: their shards move, and what they say late is refused."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from coditect import Workflow
from coditect.local import PrivateServers
from coditect.model.workflow.states import WorkflowState
from dispatcher.layers import shards
from dispatcher.stopped import NAME
from dispatcher.store.sqlite import SqliteDatabase
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.endurance, pytest.mark.slow, pytest.mark.timeout(240)]

SHARDS = 4
LEDGER = "ledger.db"
SECONDS = 30.0


async def dispatcher(fleet: Fleet) -> subprocess.Popen[bytes]:
    return await fleet.ready(begun(fleet))


def begun(fleet: Fleet, **more: str) -> subprocess.Popen[bytes]:
    store = f"sqlite:{fleet.folder / LEDGER}"
    return fleet.begin("dispatcher", CODITECT_STORE=store, CODITECT_SHARDS=str(SHARDS), **more)


async def moved(ledger: SqliteDatabase, among: Collection[subprocess.Popen[bytes]]) -> float:
    """Returns when exactly these processes own all shards; how long it took, in seconds."""
    began = asyncio.get_running_loop().time()
    wanted = {f"{NAME}-{process.pid}" for process in among}

    async def is_so() -> bool:
        owners = await ledger.read(lambda tr: shards.owners(tr, SHARDS))
        return {owner.rpartition("-")[0] for owner in owners.values()} == wanted

    await eventually(is_so, seconds=SECONDS)
    return asyncio.get_running_loop().time() - began


async def stopped_between_transactions(process: subprocess.Popen[bytes], ledger: SqliteDatabase) -> None:
    """Stops it where it holds nothing; inside a transaction it would be ended."""

    async def is_so() -> bool:
        process.send_signal(signal.SIGSTOP)
        await eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        holder = ledger.holder()
        if holder is None or holder.pid != process.pid:
            return True
        process.send_signal(signal.SIGCONT)
        return False

    await eventually(is_so, seconds=SECONDS)


async def test_shards_move_when_their_dispatcher_ends_is_killed_or_stands_still(
    managed: PrivateServers, tmp_path: Path
) -> None:
    flow = Workflow("chain")
    before = flow.task("work.do", 100, name="n0")
    for number in range(1, 40):
        before = flow.task("work.do", 100, name=f"n{number}", after=[before])
    async with AsyncExitStack() as stack, open_fleet(managed, tmp_path) as fleet, client_of(managed) as client:
        await fleet.start()
        first, second = await dispatcher(fleet), await dispatcher(fleet)
        ledger = await stack.enter_async_context(SqliteDatabase(tmp_path / LEDGER))
        took = {"joining": await moved(ledger, [first, second])}
        runs = [await client.start(flow) for _ in range(4)]

        await stopped_between_transactions(second, ledger)
        took["SIGSTOP"] = await moved(ledger, [first])
        second.send_signal(signal.SIGCONT)
        took["SIGCONT"] = await moved(ledger, [first, second])

        first.kill()
        took["SIGKILL"] = await moved(ledger, [second])
        third = await dispatcher(fleet)
        await moved(ledger, [second, third])
        second.terminate()
        took["SIGTERM"] = await moved(ledger, [third])

        assert [await run.wait(timeout=60) for run in runs] == [WorkflowState.COMPLETED] * 4
        assert await asyncio.to_thread(second.wait, 10) == 0
        ends = [row.node for run in runs async for row in run.attempts() if row.status == "completed"]
        assert len(ends) == 160
    print({how: round(seconds, 2) for how, seconds in took.items()})


async def test_dispatcher_that_stands_still_inside_a_transaction_is_ended_and_it_is_said(
    managed: PrivateServers, tmp_path: Path
) -> None:
    flow = Workflow("one")
    flow.task("work.do", 10, name="only")
    async with AsyncExitStack() as stack, open_fleet(managed, tmp_path) as fleet, client_of(managed) as client:
        await fleet.start()
        healthy = await dispatcher(fleet)
        ledger = await stack.enter_async_context(SqliteDatabase(tmp_path / LEDGER))
        await moved(ledger, [healthy])

        stuck = begun(fleet, CODITECT_FAILPOINTS="commit.before:stop")  # as it takes its first shards

        assert await asyncio.to_thread(stuck.wait, SECONDS) == -signal.SIGKILL
        assert "A dispatcher that stood still inside a transaction was ended" in fleet.log(healthy)
        took = await moved(ledger, [healthy])
        runs = [await client.start(flow) for _ in range(8)]
        assert [await run.wait(timeout=60) for run in runs] == [WorkflowState.COMPLETED] * 8
    print(f"moved after {took:.2f} s")
