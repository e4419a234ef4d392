"""Dispatchers that are asked to end, killed, or stopped: their shards move, and what they say late is refused."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

from coditect import Workflow
from coditect.broker.amqp import AmqpBroker
from coditect.clock import SystemClock
from coditect.control_plane import ControlPlane
from coditect.local import PrivateServers
from coditect.model.control import Verb
from coditect.model.workflow.states import WorkflowState
from coditect.requests import Requests
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

SHARDS = 4
SECONDS = 30.0


async def dispatcher(fleet: Fleet, module: str = "dispatcher", **more: str) -> subprocess.Popen[bytes]:
    store = f"sqlite:{fleet.folder / 'ledger.db'}"
    return await fleet.run(module, CODITECT_STORE=store, CODITECT_SHARDS=str(SHARDS), **more)


async def moved(servers: PrivateServers, among: Collection[subprocess.Popen[bytes]]) -> float:
    """Returns when exactly these processes own all shards; how long it took, in seconds."""
    began = asyncio.get_running_loop().time()
    wanted = {f"dispatcher-{process.pid}" for process in among}
    async with (
        AmqpBroker(servers.amqp_url) as broker,
        Requests(broker, name=f"test-{began}") as requests,
    ):
        control = ControlPlane(broker, requests, SystemClock())

        async def is_so() -> bool:
            told = await control.ask(Verb.STATUS, {})
            owners = {(one["owner"] or "").rpartition("-")[0] for one in told["shards"]}
            return len(told["shards"]) == SHARDS and owners == wanted

        await eventually(is_so, seconds=SECONDS)
    return asyncio.get_running_loop().time() - began


async def test_shards_move_when_their_dispatcher_ends_is_killed_or_stands_still(
    managed: PrivateServers, tmp_path: Path
) -> None:
    flow = Workflow("chain")
    before = flow.task("work.do", 100, name="n0")
    for number in range(1, 40):
        before = flow.task("work.do", 100, name=f"n{number}", after=[before])
    async with open_fleet(managed, tmp_path) as fleet, client_of(managed) as client:
        await fleet.start()
        first, second = await dispatcher(fleet), await dispatcher(fleet)
        took = {"joining": await moved(managed, [first, second])}
        runs = [await client.start(flow) for _ in range(4)]

        second.send_signal(signal.SIGSTOP)
        took["SIGSTOP"] = await moved(managed, [first])
        second.send_signal(signal.SIGCONT)
        took["SIGCONT"] = await moved(managed, [first, second])

        first.kill()
        took["SIGKILL"] = await moved(managed, [second])
        third = await dispatcher(fleet)
        await moved(managed, [second, third])
        second.terminate()
        took["SIGTERM"] = await moved(managed, [third])

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
    stop = tmp_path / "stop"
    async with open_fleet(managed, tmp_path) as fleet, client_of(managed) as client:
        await fleet.start()
        healthy = await dispatcher(fleet)
        stuck = await dispatcher(fleet, "tests.integration.dispatcher.stopping_dispatcher", STOP_FILE=str(stop))
        await moved(managed, [healthy, stuck])

        stop.touch()
        took = await moved(managed, [healthy])

        assert await asyncio.to_thread(stuck.wait, 10) == -signal.SIGKILL
        assert "A dispatcher that stood still inside a transaction was ended" in fleet.logs()
        runs = [await client.start(flow) for _ in range(8)]
        assert [await run.wait(timeout=60) for run in runs] == [WorkflowState.COMPLETED] * 8
    print(f"ended and moved after {took:.2f} s")
