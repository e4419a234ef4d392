"""A2A both ways on real servers: tasks that outlive the API that took them, and a remote agent that is killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from a2a.client import Client as A2aClient
from a2a.client import ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.types import a2a_pb2 as a2a
from a2a.types.a2a_pb2 import TaskState as A2aState
from a2a.utils.errors import UnsupportedOperationError

from coditect.api.access import KeyFile, Role
from coditect.local import PrivateServers
from tests.integration.agent.fleet import open_fleet
from tests.integration.api.test_api_program import Served, served
from tests.servers import Servers
from tests.unit.integrations.a2a.fleet_agent import at_once, message, sent, value

pytestmark = pytest.mark.servers

MADE = "2026-01-01T00:00:00+00:00"
POLICY = """
rules:
  - {name: small, of: task, capability: work.do, when: "input <= `10`", risk: low, action: approve}
  - {name: rest, of: task, capability: work.do, risk: high, action: ask}
"""
SERVER = "tests.unit.integrations.a2a.remote_server"


@asynccontextmanager
async def a2a_client(api: Served, *, streaming: bool = False) -> AsyncIterator[A2aClient]:
    """The SDK's client of a running API."""
    async with httpx.AsyncClient(timeout=60) as http:
        factory = ClientFactory(ClientConfig(httpx_client=http, streaming=streaming))
        yield await factory.create_from_url(str(api.http.base_url).rstrip("/"))


async def test_a_task_outlives_the_api_process_that_took_it(own_servers: PrivateServers, tmp_path: Path) -> None:
    urls = Servers(own_servers.amqp_url, own_servers.redis_url)
    async with open_fleet(own_servers, tmp_path) as fleet:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        await fleet.start()
        async with served(urls, tmp_path) as first, served(urls, tmp_path) as second:
            async with a2a_client(first) as client:
                begun = await sent(client, at_once(message(10_000, "work.do", context_id="mine")))
            first.process.kill()
            await first.process.wait()
            async with a2a_client(second, streaming=True) as client:
                followed = [one async for one in client.subscribe(a2a.SubscribeToTaskRequest(id=begun.id))]
                ended = await client.get_task(a2a.GetTaskRequest(id=begun.id))
                listed = await client.list_tasks(a2a.ListTasksRequest(context_id="mine"))

            async with a2a_client(second) as asking:
                stalling = await sent(asking, at_once(message(50_000, "work.do")))
                canceled = await asking.cancel_task(a2a.CancelTaskRequest(id=stalling.id))

    assert begun.status.state in (A2aState.TASK_STATE_SUBMITTED, A2aState.TASK_STATE_WORKING)
    assert followed[0].HasField("task")
    assert followed[-1].status_update.status.state == A2aState.TASK_STATE_COMPLETED
    assert (ended.status.state, value(ended)) == (A2aState.TASK_STATE_COMPLETED, 10_000)
    assert [one.id for one in listed.tasks] == [begun.id]
    assert canceled.status.state == A2aState.TASK_STATE_CANCELED


async def test_a_task_that_waits_for_an_approval_is_answered_by_a_message_of_an_approver(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    (tmp_path / "approvals.yaml").write_text(POLICY)
    keys = KeyFile(tmp_path / "keys")
    operator, approver = (keys.create(role.value, role, made_at=MADE) for role in (Role.OPERATOR, Role.APPROVER))
    policy = {"CODITECT_APPROVAL_POLICY": str(tmp_path / "approvals.yaml")}
    urls = Servers(own_servers.amqp_url, own_servers.redis_url)
    async with open_fleet(own_servers, tmp_path) as fleet:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}", **policy)
        await fleet.start(**policy)
        async with (
            served(urls, tmp_path, CODITECT_API_KEYS=str(tmp_path / "keys")) as api,
            httpx.AsyncClient(timeout=60, headers={"authorization": f"Bearer {operator}"}) as http,
        ):
            factory = ClientFactory(ClientConfig(httpx_client=http, streaming=False))
            client = await factory.create_from_url(str(api.http.base_url).rstrip("/"))
            approved = await sent(client, message(1, "work.do"))
            first, second = [await sent(client, message(number, "work.do")) for number in (20, 30)]
            with pytest.raises(A2AClientError, match="403"):
                await sent(client, message("grant", task_id=first.id))
            http.headers["authorization"] = f"Bearer {approver}"
            with pytest.raises(UnsupportedOperationError, match="no more messages"):
                await sent(client, message("perhaps", task_id=first.id))
            granted = await sent(client, message("grant", task_id=first.id))
            denied = await sent(client, message("Deny", task_id=second.id))
            with pytest.raises(UnsupportedOperationError, match="no more messages"):
                await sent(client, message("grant", task_id=first.id))

    assert approved.status.state == A2aState.TASK_STATE_COMPLETED
    assert first.status.state == A2aState.TASK_STATE_INPUT_REQUIRED
    assert "grant" in first.status.message.parts[0].text
    assert (granted.id, granted.status.state, value(granted)) == (first.id, A2aState.TASK_STATE_COMPLETED, 20)
    assert denied.status.state == A2aState.TASK_STATE_REJECTED
