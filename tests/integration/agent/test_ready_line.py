"""What an agent process says of itself when it is at work, and while it drains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coditect.local.servers import free_ports
from tests.integration.agent.fleet import AGENT, READY_SECONDS, Fleet, client_of
from tests.support import eventually, probed

pytestmark = pytest.mark.servers
READY = "The agent is ready"
SERVED = "Health is served"
WITHOUT = "The agent has no capability: nothing is sent to it"


async def said(fleet: Fleet, *, target: Path | None = None) -> dict[str, dict[str, Any]]:
    """The lines of an agent that was just started, by what happened."""
    process = await (fleet.start() if target is None else fleet.start(target=str(target)))
    await eventually(lambda: READY in fleet.log(process))  # the ready file is there a moment before
    process.terminate()
    process.wait(100)
    return {line["event"]: line for line in map(json.loads, fleet.log(process).splitlines())}


async def test_ready_line_has_capabilities_slots_and_broker(fleet: Fleet) -> None:
    lines = await said(fleet)

    ready = lines[READY]
    assert (ready["capabilities"], ready["slots"]) == ("work.do,work.parts,work.ask", 16)
    address, _, place = fleet.servers.amqp_url.rpartition("@")
    assert ready["broker"].endswith(place)
    assert address.rpartition(":")[2] not in json.dumps(lines) or "@" not in fleet.servers.amqp_url
    assert WITHOUT not in lines


async def test_agent_without_capabilities_warns(fleet: Fleet, tmp_path: Path) -> None:
    target = tmp_path / "idle.py"
    target.write_text('from coditect import Agent\n\nidle = Agent("idle")\n')

    lines = await said(fleet, target=target)

    assert lines[WITHOUT]["level"] == "warning"
    assert lines[WITHOUT]["agent_id"].startswith("idle-")


async def test_probes_are_answered_while_an_agent_looks_for_its_broker(fleet: Fleet) -> None:
    port, nobody = free_ports(2)
    health = {"CODITECT_HEALTH_PORT": str(port), "CODITECT_AMQP_URL": f"amqp://127.0.0.1:{nobody}/"}
    process = fleet.begin("coditect", "agent", "run", str(AGENT), **health)
    await eventually(lambda: SERVED in fleet.log(process), seconds=READY_SECONDS)

    assert await probed(port, "/livez") == (200, "alive")
    assert await probed(port, "/readyz") == (503, "it is starting")
    process.terminate()
    assert process.wait(100) == 0


async def test_probes_are_answered_while_an_agent_drains(fleet: Fleet) -> None:
    (port,) = free_ports(1)
    process = await fleet.start(CODITECT_HEALTH_PORT=str(port))

    async def drains() -> bool:
        return await probed(port, "/readyz") == (503, "it drains")

    async with client_of(fleet.servers) as client:
        handle = await client.submit("work.do", 10_000)
        await eventually(lambda: fleet.in_flight() == 1)
        assert await probed(port, "/readyz") == (200, "ready")
        process.terminate()
        await eventually(drains)
        assert await probed(port, "/livez") == (200, "alive")
        assert await handle.result(int, timeout=60) == 10_000
    assert process.wait(100) == 0
