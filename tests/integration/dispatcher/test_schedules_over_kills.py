"""A schedule's ticks while its dispatcher is killed again and again, on real servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from coditect import Workflow
from coditect.local import PrivateServers
from coditect.workflow.states import WorkflowState
from tests.integration.agent.fleet import client_of, open_fleet
from tests.integration.dispatcher.test_take_over import dispatcher
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

TICKS = 60
KILLS = 5


async def test_a_schedule_of_every_second_starts_each_tick_once_though_its_dispatcher_is_killed_five_times(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    flow = Workflow("ticking")
    flow.task("work.do", 1)
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.start()
        process = await dispatcher(fleet)
        made = await client.schedules.create("ticking", flow, 1, every="1s", catch_up="all")
        assert made.next is not None
        for _ in range(KILLS):
            await asyncio.sleep(TICKS / (KILLS + 1))  # the schedule's own time: nothing is waited for
            process.kill()
            await asyncio.to_thread(process.wait)
            process = await dispatcher(fleet)

        async def is_over() -> bool:
            (row,) = [row async for row in client.schedules.list()]
            return row.runs >= TICKS

        await eventually(is_over, seconds=90)
        await client.schedules.pause("ticking")
        last = made.next + (TICKS - 1) * 1000
        ticks = Counter([UUID(row.workflow).int >> 80 async for row in client.runs() if row.name == "ticking"])

        async def has_ended() -> bool:
            return all([row.state is WorkflowState.COMPLETED async for row in client.runs() if row.name == "ticking"])

        await eventually(has_ended, seconds=60)

    first = datetime.fromtimestamp(made.next / 1000, UTC)
    assert first.microsecond == 0
    assert {tick: number for tick, number in ticks.items() if tick <= last} == dict.fromkeys(
        range(made.next, last + 1, 1000), 1
    )
