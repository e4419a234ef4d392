"""A task with a delay whose dispatcher is killed before it is due, on real servers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from coditect.local import PrivateServers
from tests.integration.agent.fleet import client_of, open_fleet
from tests.integration.dispatcher.test_take_over import dispatcher

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.timeout(240)]

DELAY_SECONDS = 12


async def test_a_delayed_task_runs_once_though_its_dispatcher_dies(own_servers: PrivateServers, tmp_path: Path) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.start()
        process = await dispatcher(fleet)
        began = time.time()
        handle = await client.submit("work.do", 1, delay=DELAY_SECONDS, timeout="1m")
        canceled = await client.submit("work.do", 2, delay=DELAY_SECONDS)
        process.kill()
        await asyncio.to_thread(process.wait)
        await dispatcher(fleet)
        await canceled.cancel()

        outcome = await handle.outcome(timeout="60s")
        row, refused = await handle.row(), await canceled.outcome(timeout="60s")

    assert outcome.status == "completed"
    assert outcome.attempt == 1
    assert row.started_at_ms is not None
    assert row.started_at_ms / 1000 >= began + DELAY_SECONDS
    assert refused.status == "canceled"
    assert refused.fence == 0
