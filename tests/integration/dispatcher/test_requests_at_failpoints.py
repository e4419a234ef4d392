"""Dispatchers die while they do what was asked for: it is done once, and whoever asked is told so."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coditect import Workflow
from coditect.aio.failpoints import VARIABLE
from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.local import PrivateServers
from coditect.wire import routing
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.keyspace import ANSWERS
from dispatcher.store.sqlite import SqliteDatabase
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.integration.dispatcher.keyed import AGENT
from tests.programs import Program
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

SECONDS = 60.0
dies = pytest.mark.parametrize(
    "order",
    [
        pytest.param("commit.after:kill@2", marks=pytest.mark.endurance),
        "answer.before:kill",
        pytest.param("answer.after:kill", marks=pytest.mark.endurance),
    ],
)
"""The first commit is that of the leases."""


@dataclass(slots=True)
class Plant:
    """An agent, dispatchers one after the other, and a client."""

    fleet: Fleet
    client: Client

    @property
    def ledger(self) -> Path:
        return self.fleet.folder / "ledger.db"

    def begin(self, **more: str) -> Program:
        return self.fleet.begin("dispatcher", CODITECT_STORE_URL=f"sqlite:{self.ledger}", CODITECT_SHARDS="1", **more)

    @asynccontextmanager
    async def dispatcher(self) -> AsyncIterator[None]:
        """One that lives as long as the block and ends in order, with everything answered."""
        living = await self.fleet.ready(self.begin())
        yield
        broker = self.client._broker
        for queue in (routing.CONTROL_QUEUE, routing.control_queue(0)):

            async def is_empty(queue: str = queue) -> bool:
                stats = await broker.stats(queue)
                return stats is None or not stats.messages

            await eventually(is_empty, seconds=SECONDS)
        living.terminate()
        assert await asyncio.to_thread(living.wait, SECONDS) == 0

    async def kept(self) -> int:
        """How many requests the ledger remembers."""
        async with SqliteDatabase(self.ledger) as ledger:
            return len(await ledger.read(lambda tr: tr.get_range(*ANSWERS.range())))

    async def asked(self, request: Callable[[], Awaitable[Any]], order: str) -> Any:
        """What is told of a request after whose commit a dispatcher died, as it was ordered to."""
        before = await self.kept()
        asked = asyncio.ensure_future(request())
        while await self.kept() == before:
            dying = self.begin(**{VARIABLE: order})
            await eventually(lambda dying=dying: dying.poll() is not None, seconds=SECONDS)  # type: ignore[misc]
            assert dying.returncode == -signal.SIGKILL, self.fleet.log(dying)
        async with self.dispatcher():
            told = await asked
        assert await self.kept() == before + 1
        return told


async def ends(run: Run) -> int:
    """How often the node came to an end. A fault may have it executed twice for one of them."""
    return len([attempt async for attempt in run.attempts("bad") if attempt.status == "failed"])


@pytest.fixture
async def plant(own_servers: PrivateServers, tmp_path: Path) -> AsyncIterator[Plant]:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.start(target=AGENT)
        yield Plant(fleet, client)


@dies
async def test_node_is_redriven_once_and_workflow_resumed_once_wherever_a_dispatcher_dies(
    plant: Plant, order: str
) -> None:
    flow = Workflow("fails")
    flow.task("keyed.fail", name="bad")
    async with plant.dispatcher():
        run = await plant.client.start(flow)
        assert await run.wait(timeout=SECONDS) is WorkflowState.FAILED

    for times, request in enumerate((lambda: run.redrive("bad"), run.resume), start=2):
        await plant.asked(request, order)
        async with plant.dispatcher():
            assert await run.wait(timeout=SECONDS) is WorkflowState.FAILED
            assert await ends(run) == times


@dies
async def test_approval_is_granted_and_workflow_canceled_once_wherever_a_dispatcher_dies(
    plant: Plant, order: str
) -> None:
    flow = Workflow("gated")
    gate = flow.approval("now?", name="gate")
    flow.task("keyed.fail", after=[gate], name="bad")
    async with plant.dispatcher():
        run = await plant.client.start(flow)

    await plant.asked(run.cancel, order)
    async with plant.dispatcher():
        assert await run.state() is WorkflowState.CANCELED
        await run.redrive("gate")
        await run.redrive("bad")
    await plant.asked(lambda: run.answer("gate", granted=True, by="ada"), order)

    async with plant.dispatcher():
        assert await run.wait(timeout=SECONDS) is WorkflowState.FAILED
        assert await ends(run) == 1
