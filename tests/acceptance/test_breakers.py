"""A dependency of a fleet that fails always, and recovers: agents, dispatcher, RabbitMQ and Redis are real."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from coditect import Workflow
from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.servers import ROOT
from tests.support import eventually, patient, whole_lines

pytestmark = pytest.mark.servers

AGENT = Path(__file__).with_name("breaker_agent.py")
RESET_SECONDS = 3.0
"""As `breaker_agent` declares it."""
FAILURES = 3
"""As well: the third failure in a row opens the breaker, and does not count itself."""
AGENTS = 6
TASKS = 40
OPENED = "A breaker opened"
"""How the log lines begin that say it."""


@dataclass(frozen=True)
class Call:
    at: float
    attempt: int
    task: str
    down: bool


def calls(folder: Path) -> list[Call]:
    rows = [line.split() for line in whole_lines(folder / "calls")]
    return [Call(float(at), int(attempt), task, state == "down") for at, attempt, task, state in rows]


def opened(fleet: Fleet) -> list[float]:
    """When each agent first said that its breaker is open."""
    first = []
    for process in fleet.processes[1:]:
        lines = [json.loads(line) for line in fleet.log(process).splitlines() if OPENED in line]
        if lines:
            first.append(datetime.fromisoformat(lines[0]["timestamp"]).timestamp())
    return first


def burnt(made: list[Call]) -> int:
    """Return the number of attempts that tasks lost between their first of these calls and their last one."""
    tasks = {one.task: [call.attempt for call in made if call.task == one.task] for one in made}
    return sum(max(attempts) - min(attempts) for attempts in tasks.values())


@pytest.mark.timeout(240)
async def test_an_outage_opens_all_breakers_in_a_second_has_one_probe_an_interval_and_burns_no_attempt(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    (tmp_path / "down").touch()
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        stub = {"STUB_FOLDER": str(tmp_path), "PYTHONPATH": str(ROOT)}
        begun = [fleet.begin("coditect", "agent", "run", str(AGENT), **stub) for _ in range(AGENTS)]
        for process in begun:
            await fleet.ready(process)
        flow = Workflow("calls")
        for number in range(4):
            flow.task("stub.call", number, name=f"n{number}")

        handles = [await client.submit("stub.call", number) for number in range(TASKS)]
        run = await client.start(flow)
        await eventually(lambda: len(opened(fleet)) == AGENTS)
        instants = sorted(opened(fleet))
        await asyncio.sleep(3.5 * RESET_SECONDS)  # the outage itself, of some probe intervals
        probes = [one for one in calls(tmp_path) if one.at > instants[-1] + 1]
        (tmp_path / "down").unlink()
        mended = time.time()

        assert sorted([await handle.result(timeout="60s") for handle in handles]) == list(range(TASKS))
        await run.result(timeout="60s")
        first_after = next(one.at for one in calls(tmp_path) if not one.down)
        made = calls(tmp_path)

    assert instants[-1] - instants[0] <= patient(1.0)
    assert 2 <= len(probes) <= 4
    assert all(later.at - earlier.at >= RESET_SECONDS - 0.2 for earlier, later in pairwise(probes))
    assert first_after - mended <= patient(RESET_SECONDS + 1)
    assert burnt(made) <= (FAILURES - 1) * AGENTS, "each agent may fail so often before its breaker opens"
    assert burnt([one for one in made if one.at > instants[-1] + 1]) == 0
