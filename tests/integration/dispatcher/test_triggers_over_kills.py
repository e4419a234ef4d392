"""A trigger's events while its dispatcher is killed again and again, on real servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from coditect import From, Workflow
from coditect.client.client import Client
from coditect.local import PrivateServers
from coditect.model.message import Event, Message
from coditect.wire import routing
from coditect.wire.events import event_message
from coditect.workflow.states import WorkflowState
from tests.integration.agent.fleet import client_of, open_fleet
from tests.integration.dispatcher.test_take_over import dispatcher
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.timeout(240)]

EVENTS = 300
KILLS = 3


async def publish(client: Client, number: int) -> None:
    event = Event("repo.pushed", "/git", str(number), 1_767_225_600_000, "", {"pause": 1})
    await client._broker.publish(event_message(event), exchange=routing.EVENTS, routing_key="repo.pushed")


async def test_each_event_starts_one_workflow_over_three_kills(own_servers: PrivateServers, tmp_path: Path) -> None:
    flow = Workflow("pushed")
    flow.task("work.do", From("input.pause"))
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.start()
        process = await dispatcher(fleet)
        await client.triggers.create("pushed", "repo.pushed", flow, {"pause": From("event.data.pause")})
        for kill in range(KILLS):
            for number in range(kill * 100, (kill + 1) * 100):
                await publish(client, number)
            process.kill()  # with events that it took and did not acknowledge
            await publish(client, kill * 100)  # the same event again
            await client._broker.publish(Message(b"no event"), exchange=routing.EVENTS, routing_key="repo.pushed")
            await asyncio.to_thread(process.wait)
            process = await dispatcher(fleet)

        async def all_ended() -> bool:
            rows = [row async for row in client.workflows.list(name="pushed")]
            return len(rows) >= EVENTS and all(row.state is WorkflowState.COMPLETED for row in rows)

        await eventually(all_ended, seconds=90)
        await eventually(lambda: _waiting(client, routing.trigger_queue("pushed")), seconds=30)
        keys = Counter([row.key async for row in client.workflows.list(name="pushed")])
        (row,) = [row async for row in client.triggers.list()]
        unreadable = await client._broker.stats(routing.UNROUTED_QUEUE)

    assert keys == {f"trigger:pushed:/git:{number}": 1 for number in range(EVENTS)}
    assert (row.runs, row.failed) == (EVENTS, 0)
    assert unreadable is not None
    assert unreadable.messages == KILLS


async def _waiting(client: Client, queue: str) -> bool:
    """Tells whether every event of the queue was taken."""
    found = await client._broker.stats(queue)
    return found is not None and found.messages == 0
