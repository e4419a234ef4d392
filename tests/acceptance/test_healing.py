"""The self-healing workflow on real servers and real services: the demo, a wrong remedy, a killed fixer, no remedy."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from random import Random

import psutil
import pytest

from agents.demo.fleet import demo_folder
from agents.demo.healing.faults import FAULTS, break_all_versions, injected
from agents.demo.healing.runs import AGENTS, HealingFleet, healing_fleet
from agents.demo.healing.ward import FIRST, running_till
from agents.deployment.service import Service
from agents.healing.diagnosis import Bounds, examine, trouble_of
from coditect import WorkflowRun
from coditect.workflow.states import TaskState, WorkflowState
from tests.servers import ROOT
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof]

DOCTORS = ["cause.rules", "cause.wrong-first", "cause.wrong-too"]
WRONG: Mapping[str, Sequence[str]] = {**AGENTS, "doctor-3": ("tests/acceptance/wrong_doctors.py",)}


@pytest.mark.timeout(180)
def test_one_fault_of_each_kind_is_fixed_by_the_demo() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "agents.demo.healing"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    kinds = re.findall(r"^ +\d+  ([a-z ]+): well after", ran.stdout, re.M)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Left out" in ran.stdout or "disk full" in kinds
    assert {*kinds} | {"disk full"} == FAULTS.keys()
    assert "100% fixed without a person" in ran.stdout


@pytest.mark.timeout(300)
async def test_a_wrong_remedy_leads_to_another_round_a_killed_fixer_is_followed_and_a_person_is_asked_in_the_end() -> (
    None
):
    with demo_folder(ROOT) as folder:
        arguments = {"doctors": DOCTORS, "patience": "10m"}
        async with healing_fleet(ROOT, folder, seed=1, say=print, agents=WRONG, pattern_arguments=arguments) as fleet:
            await wrong_first(fleet)
            await killed_amid_the_fix(fleet)
            await no_remedy(fleet)


async def wrong_first(fleet: HealingFleet) -> None:
    """The first vote is wrong: its remedy changes nothing, verify says so, and the second round heals."""
    with running_till(fleet.folder / "wrong") as service:
        async with fleet.watching(service) as run:
            with injected("bad configuration", service, Random(1)):
                state = await run.wait(timeout="1m")
            first, last = await fleet.rounds_of(run)

        assert state is WorkflowState.COMPLETED
        assert first.votes[1:] == ("disk_full", "disk_full") != first.votes[:1] * 2
        assert (first.cause, first.done) == ("disk_full", "deleted 0 files of its cache")
        assert "its configuration is refused" in first.why
        assert (last.cause, last.done, last.why) == ("bad_configuration", "went back to version v1", "")
        assert well(service)


async def killed_amid_the_fix(fleet: HealingFleet) -> None:
    """A healer is killed with -9 while it waits for a hung process to end: another one fixes it, once."""
    with running_till(fleet.folder / "killed") as service:
        async with fleet.watching(service) as run:
            await _heal_despite_a_kill(fleet, service, run)


async def _heal_despite_a_kill(fleet: HealingFleet, service: Service, run: WorkflowRun) -> None:
    with injected("event loop hung", service, Random(1)):
        hung = service.process()

        async def begun() -> bool:
            return (await run.look("fix_2")).state is TaskState.WORKING

        await eventually(begun, seconds=60)
        agent = next(row.agent for row in [row async for row in run.nodes()] if row.name == "fix_2")
        (record,) = [one for one in await fleet.client.agents.list("service.fix") if one.agent_id == agent]
        os.kill(record.registration.pid, signal.SIGKILL)
        state = await run.wait(timeout="2m")
        attempts = [row async for row in run.attempts("fix_2")]
        rounds = await fleet.rounds_of(run)

        assert state is WorkflowState.COMPLETED
        assert [one.status for one in attempts][-1] == "completed"
        assert len(attempts) > 1 or attempts[0].agent != agent
        assert (rounds[-1].cause, rounds[-1].why) == ("hung", "")
        assert service.process() not in (None, hung)
        assert well(service)
        assert len(processes_of(service)) == 1


async def no_remedy(fleet: HealingFleet) -> None:
    """What no agent can mend ends after three rounds with a question that says why, and with a person's answer."""
    with running_till(fleet.folder / "broken") as service:
        async with fleet.watching(service) as run:
            await asyncio.to_thread(break_all_versions, service)
            await _ask(fleet, run)


async def _ask(fleet: HealingFleet, run: WorkflowRun) -> None:
    async def asked() -> bool:
        return (await run.look("escalate")).state is TaskState.AWAITING_APPROVAL

    await eventually(asked, seconds=90)
    rounds = await fleet.rounds_of(run)
    question = [row async for row in fleet.client.approvals.list()]
    decision = await fleet.client.approvals.get(f"{run.id}:escalate")
    await run.deny("escalate", by="ada", comment="the settings are lost")
    state = await run.wait(timeout="1m")

    assert [one.done for one in rounds[1:]] == ["nothing: no other version has a configuration that is sound"] * 2
    assert [row.workflow for row in question] == [run.id]
    assert "its configuration is refused: json.decoder.JSONDecodeError" in str(decision)
    assert state is WorkflowState.REJECTED


def well(service: Service) -> bool:
    return not trouble_of(examine(service), Bounds()) and service.version == FIRST


def processes_of(service: Service) -> list[int]:
    """Return every process that runs a version of the service."""
    place = f"{service.folder.resolve()}/"
    running = (one for one in psutil.process_iter(["cwd", "status"]) if one.info["status"] != psutil.STATUS_ZOMBIE)
    return [one.pid for one in running if (one.info["cwd"] or "").startswith(place)]
