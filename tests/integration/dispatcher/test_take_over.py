"""Dispatchers that are asked to end, killed, or stopped: their shards move, and what they say late is refused."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from coditect import Workflow
from coditect.client import Client
from coditect.local import PrivateServers
from coditect.model.control import Verb
from coditect.model.workflow.states import WorkflowState
from coditect.run import Run
from dispatcher.layers import shards
from dispatcher.layers.shards import shard_of
from dispatcher.stopped import NAME
from dispatcher.store.sqlite import SqliteDatabase
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

SHARDS = 4
NODES = 30
LEDGER = "ledger.db"
SECONDS = 30.0
KILLED_SECONDS, ENDED_SECONDS = 4.0, 1.0
"""Within so long the shards of a dispatcher have moved that was killed or stopped, and of one that was asked to end."""
STOPPED_SECONDS = 10.0
LATE = "A shard is another's by now"


@asynccontextmanager
async def plant(servers: PrivateServers, folder: Path) -> AsyncIterator[tuple[Fleet, Client, SqliteDatabase]]:
    """One agent, a client, and the ledger to look into."""
    async with open_fleet(servers, folder) as fleet, client_of(servers) as client:
        await fleet.start()
        async with SqliteDatabase(folder / LEDGER) as ledger:
            yield fleet, client, ledger


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


async def started_in_every_shard(client: Client, flow: Workflow) -> list[Run]:
    """At least one workflow in each: whoever is stopped has something in hand."""
    runs: list[Run] = []
    while {shard_of(run.id, SHARDS) for run in runs} != set(range(SHARDS)):
        runs.append(await client.start(flow))
    return runs


async def figures(client: Client, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What this dispatcher says of itself; whichever takes the question answers it."""
    found: dict[str, Any] = {}

    async def it_answers() -> bool:
        answer = await client._workflows._control.ask(Verb.STATUS, {})
        found.update(answer["answered_by"])
        return bool(found["owner"].startswith(f"{NAME}-{process.pid}-"))

    await eventually(it_answers, seconds=SECONDS)
    return found


def chain(many: int) -> Workflow:
    flow = Workflow("chain")
    before = flow.task("work.do", 100, name="n0")
    for number in range(1, many):
        before = flow.task("work.do", 100, name=f"n{number}", after=[before])
    return flow


async def test_shards_move_in_time_when_their_dispatcher_is_killed_or_ends(
    managed: PrivateServers, tmp_path: Path
) -> None:
    async with plant(managed, tmp_path) as (fleet, client, ledger):
        first, second = await dispatcher(fleet), await dispatcher(fleet)
        await moved(ledger, [first, second])
        runs = await started_in_every_shard(client, chain(NODES))

        first.kill()
        killed = await moved(ledger, [second])
        third = await dispatcher(fleet)
        await moved(ledger, [second, third])
        second.terminate()
        ended = await moved(ledger, [third])

        assert killed < KILLED_SECONDS
        assert ended < ENDED_SECONDS
        await assert_each_once(runs)
        assert await asyncio.to_thread(second.wait, 10) == 0


async def test_what_a_stopped_dispatcher_commits_late_is_refused_counted_and_logged(
    managed: PrivateServers, tmp_path: Path
) -> None:
    async with plant(managed, tmp_path) as (fleet, client, ledger):
        first, second = await dispatcher(fleet), await dispatcher(fleet)
        await moved(ledger, [first, second])
        runs = await started_in_every_shard(client, chain(NODES))
        await eventually(lambda: len(fleet.noted("end")) > len(runs))

        await stopped_between_transactions(second, ledger)
        until = asyncio.get_running_loop().time() + STOPPED_SECONDS
        stopped = await moved(ledger, [first])
        await asyncio.sleep(until - asyncio.get_running_loop().time())
        assert LATE not in fleet.log(second)
        second.send_signal(signal.SIGCONT)

        assert stopped < KILLED_SECONDS
        await eventually(lambda: LATE in fleet.log(second), seconds=SECONDS)
        await moved(ledger, [first, second])
        assert (await figures(client, second))["refused"] > 0
        assert (await figures(client, first))["refused"] == 0
        await assert_each_once(runs)


async def assert_each_once(runs: Sequence[Run]) -> None:
    assert [await run.wait(timeout=60) for run in runs] == [WorkflowState.COMPLETED] * len(runs)
    ends = [(run.id, row.node) for run in runs async for row in run.attempts() if row.status == "completed"]
    assert len(ends) == len(set(ends)) == NODES * len(runs)


@pytest.mark.endurance
async def test_dispatcher_that_stands_still_inside_a_transaction_is_ended_and_it_is_said(
    managed: PrivateServers, tmp_path: Path
) -> None:
    flow = Workflow("one")
    flow.task("work.do", 10, name="only")
    async with plant(managed, tmp_path) as (fleet, client, ledger):
        healthy = await dispatcher(fleet)
        await moved(ledger, [healthy])

        stuck = begun(fleet, CODITECT_FAILPOINTS="commit.before:stop")  # as it takes its first shards

        assert await asyncio.to_thread(stuck.wait, SECONDS) == -signal.SIGKILL
        assert "A dispatcher that stood still inside a transaction was ended" in fleet.log(healthy)
        took = await moved(ledger, [healthy])
        runs = [await client.start(flow) for _ in range(8)]
        assert [await run.wait(timeout=60) for run in runs] == [WorkflowState.COMPLETED] * 8
    print(f"moved after {took:.2f} s")
